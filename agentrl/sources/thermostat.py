"""A thermostat for entropy: what is sampled hotter and succeeds spreads the policy, what is sampled colder sharpens it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrl.errors import ConfigError
from agentrl.recipe import Stage
from agentrl.sources.guided import Guided, Lesson, again, needs_given, needs_origin, place
from agentrl.types import ScoredGroup, Trajectory, stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermostat(Guided):
    """Keep the entropy near ``target``: play a few groups more at another temperature and imitate their successes (AEPO, 2025).

    ``J = J_RL + alpha * E_{y ~ pi^T}[1[success] grad log pi(y)]``, with ``T = hot`` where the entropy is at most ``target``, else ``cold``;
    ``alpha`` is ``Given(..., given)``. The entropy is estimated from the update's own tokens (their mean negative log-probability, nats),
    so there is no lag and nothing to remember: a resumed run decides as the killed one would have. Of the extra successes at most ``most``
    are used, half as many above the target. Published code puts them in the place of other episodes; here they are added.

    A weight that corrects for the temperature would undo the effect, so these episodes are given and have no ratio.

    Counted: ``guidance/entropy``, ``guidance/temperature``, ``guidance/tempered`` successes that were added.
    """

    target: float = 0.75
    hot: float = 1.2
    cold: float = 0.8
    num_groups: int = 4
    """Groups that are played at the other temperature: tasks of the update, from its first on; the published share is a quarter."""
    most: int = 60

    def misfits(self, stage: Stage) -> Iterator[str]:
        """Look at the temperatures; ask for a loss and an advantage of its own for what is imitated."""
        if not 0.0 < self.cold <= self.hot:
            yield f"source.cold is {self.cold:g} and source.hot {self.hot:g}; 0 < cold <= hot is needed"
        if self.most < 2:
            yield f"source.most is {self.most}; at least 2 is needed, as half of it is used above the target"
        yield from needs_origin(self, stage)
        yield from needs_given(self, stage)

    def temperature(self, entropy: float) -> float:
        """Return what is sampled at where the policy has ``entropy`` nats per token.

        >>> [Thermostat(source=None, target=0.75).temperature(nats) for nats in (0.5, 0.75, 0.9)]
        [1.2, 1.2, 0.8]
        """
        return self.hot if entropy <= self.target else self.cold

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Add the successes that another temperature brings, each task's as a group of its own."""
        entropy = sampled_entropy([scored.trajectory for group in groups for scored in group])
        if entropy is None:
            return list(groups)
        if lesson.ground.at is None:
            raise ConfigError(
                "a thermostat needs an agent that can be sampled at another temperature; Playground.at is not set"
            )
        temperature = self.temperature(entropy)
        draws = [
            replace(
                again(group[0]),
                num_episodes=len(group),
                first_sample=stand_in(max(scored.trajectory.sample for scored in group)),
            )
            for group in groups[: self.num_groups]
        ]
        found = await lesson.play(draws, policy=lesson.ground.at(temperature))
        room = self.most if entropy <= self.target else self.most // 2
        successes = [scored for scored in found.values() if scored.trajectory.success][:room]
        added: dict[str, ScoredGroup] = {}
        for scored in successes:
            task, _ = place(scored)
            added[task] = (*added.get(task, ()), replace(scored, trajectory=_given(scored.trajectory)))
        lesson.count("guidance/entropy", entropy)
        lesson.count("guidance/temperature", temperature)
        lesson.count("guidance/tempered", len(successes))
        return [*groups, *added.values()]


def sampled_entropy(trajectories: Sequence[Trajectory]) -> float | None:
    """Return the mean negative log-probability, in nats, of all tokens that the agent sampled; ``None`` where it sampled none."""
    logprobs = [
        turn.action.logprobs
        for one in trajectories
        if not one.given
        for turn in one.turns
        if len(turn.action.tokens)
    ]
    return -float(np.mean(np.concatenate(logprobs), dtype=np.float64)) if logprobs else None


def _given(trajectory: Trajectory) -> Trajectory:
    turns = tuple(replace(turn, action=replace(turn.action, version=-1)) for turn in trajectory.turns)
    return replace(trajectory, turns=turns)
