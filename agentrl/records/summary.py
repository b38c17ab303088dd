"""Metrics about playing, rewards and credit, computed from the trajectories of an update."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from agentrl.types import Credited, End, Scored, ScoredGroup, Trajectory


def summarise(
    groups: Sequence[ScoredGroup],
    failures: Sequence[Trajectory] = (),
    credited: Sequence[Sequence[Credited]] = (),
    *,
    version: int | None = None,
) -> dict[str, float]:
    """Return the ``rollout/``, ``reward/`` and ``credit/`` metrics of an update; undefined ones are left out.

    ``failures`` are the attempts that failed, ``credited`` holds the credit of each trajectory in the order
    of ``groups``, and ``version`` is the version of the weights that are trained.
    """
    paid = list(chain.from_iterable(groups))
    episodes = [scored.trajectory for scored in paid]
    numbers = {
        "rollout/episodes": float(len(episodes)),
        "rollout/groups": float(len(groups)),
        "rollout/attempts": float(len(episodes) + len(failures)),
        "rollout/failed": float(len(failures)),
    }
    if episodes:
        numbers |= _of_episodes(episodes) | _of_rewards(groups, paid)
    lags = [
        version - turn.action.version
        for e in episodes
        for turn in e.turns
        if version is not None and turn.action.version >= 0
    ]
    if lags:
        numbers |= {"rollout/staleness_mean": float(np.mean(lags)), "rollout/staleness_max": float(max(lags))}
    if gaps := [gap for scored in paid if (gap := _logprob_gap(scored)) is not None]:
        numbers["rollout/logprob_gap"] = max(gaps)
    return numbers | _of_credit(paid, list(chain.from_iterable(credited)))


def _logprob_gap(scored: Scored) -> float | None:
    """Return the largest difference between the learner's and the sampler's log-probability of a token.

    It is ``None`` if the episode has no tokens, if the learner did not measure them, or if some were given to
    the agent, because then the sampler's log-probabilities are unknown.
    """
    if scored.measured.old_logprobs is None or not scored.trajectory.num_tokens or scored.trajectory.given:
        return None
    gap_T = np.abs(
        scored.measured.old_logprobs
        - np.concatenate([turn.action.logprobs for turn in scored.trajectory.turns])
    )
    return None if np.isnan(gap_T).all() else float(np.nanmax(gap_T))


def _of_episodes(episodes: Sequence[Trajectory]) -> dict[str, float]:
    turns = [turn for episode in episodes for turn in episode.turns]
    valid = [turn.info["valid"] > 0 for turn in turns if "valid" in turn.info]
    truncated = [episode for episode in episodes if episode.end is End.TRUNCATED]
    numbers = {
        "rollout/success": float(np.mean([episode.success for episode in episodes])),
        "rollout/return": sum(turn.reward for turn in turns) / len(episodes),
        "rollout/turns": len(turns) / len(episodes),
        "rollout/tokens": sum(len(turn.action.tokens) for turn in turns) / len(episodes),
        "rollout/prompt_tokens": sum(len(turn.action.prompt) for turn in turns) / len(episodes),
        "rollout/truncated": len(truncated) / len(episodes),
        "rollout/context_full": sum(bool(episode.error) for episode in truncated) / len(episodes),
    }
    again = [
        turn.action.text in {earlier.action.text for earlier in e.turns[:n]}
        for e in episodes
        for n, turn in enumerate(e.turns)
        if n
    ]
    if again:
        numbers["rollout/repetition"] = float(np.mean(again))
    logprobs = [
        turn.action.logprobs for turn in turns if turn.action.version >= 0 and len(turn.action.logprobs)
    ]
    if logprobs:
        numbers["rollout/entropy"] = -float(np.mean(np.concatenate(logprobs), dtype=np.float64))
    if turns:
        numbers["rollout/clipped"] = float(np.mean([turn.action.clipped for turn in turns]))
    if valid:
        numbers["rollout/invalid"] = 1.0 - float(np.mean(valid))
    return numbers


def _of_rewards(groups: Sequence[ScoredGroup], paid: Sequence[Scored]) -> dict[str, float]:
    numbers = {"reward/return": float(np.mean([scored.rewards_N.sum() for scored in paid]))}
    for name in sorted({name for scored in paid for name in scored.ledger}):
        sums = [
            float(np.sum(scored.ledger[name], dtype=np.float64)) if name in scored.ledger else 0.0
            for scored in paid
        ]
        numbers[f"reward/{name}"] = float(np.mean(sums))
    spreads = [
        float(np.ptp([scored.rewards_N.sum() for scored in group])) for group in groups if len(group) > 1
    ]
    if spreads:
        # 1e-8: differences by rounding do not count
        numbers["credit/zero_variance"] = float(np.mean([spread < 1e-8 for spread in spreads]))
    return numbers


def _of_credit(paid: Sequence[Scored], credited: Sequence[Credited]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    advantages_T = np.concatenate([np.zeros(0), *(credit.advantages_T for credit in credited)])
    if advantages_T.size:
        numbers |= {
            "credit/advantage_mean": float(advantages_T.mean()),
            "credit/advantage_std": float(advantages_T.std()),
        }
    pairs = [
        (credit.targets_T, scored.measured.values)
        for scored, credit in zip(paid, credited, strict=bool(credited))
        if credit.targets_T is not None and scored.measured.values is not None
    ]
    if pairs:
        targets_T, values_T = (
            np.concatenate(arrays, dtype=np.float64) for arrays in zip(*pairs, strict=True)
        )
        known = ~np.isnan(targets_T)
        if known.any() and targets_T[known].var() > 0:
            errors_T = targets_T[known] - values_T[known]
            numbers["credit/explained_variance"] = float(1.0 - errors_T.var() / targets_T[known].var())
    return numbers
