"""The conformance suite of engines: one function, and one named message for each violated clause.

The clauses are what the rest of agentrl relies on: an action is a function of (weights, context, sampling,
seed), whatever else the engine serves; it records tokens, log-probabilities and the version that sampled
them; limits and views hold; new weights are used as soon as ``load`` returns, and an action under way uses
weights of one version.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agentrl.errors import ConfigError
from agentrl.policy import Engine, Policy, Sampling
from agentrl.render import context
from agentrl.testing.contract import ContractViolation
from agentrl.types import Action, IntArray, Observation, Turn, seed_of

Weights = Mapping[str, Any]
"""Arrays or tensors, of whatever library the engine loads."""
Rescore = Callable[[Weights, IntArray, IntArray], npt.ArrayLike]
"""Called as ``rescore(weights, context, tokens)``; returns the log-probability of each of ``tokens`` after
``context`` under the engine's own sampling."""

WORDS = (
    "you",
    "see",
    "a",
    "door",
    "key",
    "box",
    "to",
    "the",
    "north",
    "south",
    ";",
    "it",
    "is",
    "open",
    "closed",
    "locked",
)
TOGETHER = 24
"""Number of episodes that are served at the same time."""


def check_engine(
    open_engine: Callable[[], AbstractAsyncContextManager[Engine]],
    *,
    weights: Weights,
    num_turns: int = 3,
    deadline_s: float = 240.0,
    tolerance: float = 0.0,
    rescore: Rescore | None = None,
) -> None:
    """Check an engine against the contract.

    ``open_engine`` opens a new engine each time, always with ``weights``. The engine must sample (temperature
    above 0) and allow actions of at least 2 tokens. There are two levels:

    - ``tolerance=0``, bit-equal: the same context and seed give the same action, in tokens and
      log-probabilities, to the last bit. This holds when the action is asked for again, among other episodes,
      beside actions that are cancelled, in a new engine, and after the same weights were loaded again.
    - ``tolerance`` above 0, in nats: for engines whose numbers depend on the batch, such as served ones. The
      same seed may then sample other tokens, so tokens are not compared. Instead, ``rescore`` computes the
      log-probabilities of the tokens that each of these actions stored, and those that the action recorded
      must be within the tolerance. Other weights are checked in the same way, with ``rescore`` under the
      weights of the version that the action reports. Two actions at temperature 0 may differ from the first
      token at which their choices are within twice the tolerance of each other. Whether a token limit changes
      earlier tokens is not checked.

    Everything else is checked alike on both levels: records, versions, limits, and that seeds make a
    difference.

    Raises:
        ContractViolation: lists every violated clause and what was found.
        ConfigError: the tolerance is negative, comes without ``rescore``, or would hide outdated weights.
    """
    if tolerance < 0.0 or (tolerance > 0.0 and rescore is None):
        raise ConfigError(
            "tolerance must be 0, or above 0 together with a rescore function; "
            f"found {tolerance} and {rescore}"
        )
    level = _Level(weights, tolerance, rescore if tolerance > 0.0 else None)

    async def check() -> list[str]:
        async with asyncio.timeout(deadline_s):
            return await _check(open_engine, level, num_turns)

    if violations := asyncio.run(check()):
        raise ContractViolation(violations, "engine")


@dataclass(frozen=True)
class _Level:
    """How closely the actions of an engine must agree."""

    weights: Weights
    tolerance: float
    rescore: Rescore | None
    """Computes log-probabilities to compare with; ``None`` if actions must be equal to the last bit."""

    def difference(self, played: Sequence[Sequence[Turn]], wanted: Sequence[Sequence[Turn]]) -> str:
        """Describe how episodes differ from the ``wanted`` ones; empty if they agree.

        With a tolerance, ``wanted`` is not used: the episodes are rescored with the first weights.
        """
        if self.rescore is None:
            return "" if list(played[: len(wanted)]) == list(wanted) else "gave other actions"
        turns = [(episode[:index], turn.action) for episode in played for index, turn in enumerate(episode)]
        return self.excess(float(np.max([self.gap(past, action, self.weights) for past, action in turns])))

    def gap(self, past: Sequence[Turn], action: Action, weights: Weights) -> float:
        """Return the maximum difference between an action's recorded and rescored log-probabilities."""
        return float(np.abs(self.scores(past, action, weights) - action.logprobs).max(initial=0.0))

    def excess(self, gap: float) -> str:
        """Describe a gap above the tolerance; empty if it is accepted."""
        if gap <= self.tolerance:
            return ""
        return f"gave log-probabilities that are off by up to {gap:.3g} nats ({self.tolerance:g} is accepted)"

    def scores(self, past: Sequence[Turn], action: Action, weights: Weights) -> npt.NDArray[np.float64]:
        """Return the rescored log-probabilities of an action's tokens."""
        assert self.rescore is not None
        before = action.prompt if action.fresh else np.concatenate([context(past), action.prompt])
        return np.asarray(self.rescore(weights, before, action.tokens), np.float64)


async def _check(
    open_engine: Callable[[], AbstractAsyncContextManager[Engine]], level: _Level, num_turns: int
) -> list[str]:
    async def play(engine: Engine) -> list[list[Turn]]:
        return [await _episode(engine, index, num_turns) for index in range(2)]

    async with open_engine() as engine:
        alone = await play(engine)
        found = _records(alone, engine.version)
        if problem := level.difference(alone, alone):
            found.append(f"log-probabilities: an episode alone {problem}")
        if problem := level.difference(await play(engine), alone):
            found.append(f"seeds: the same context and seed, asked again, {problem}")
        together = await asyncio.gather(*[_episode(engine, index, num_turns) for index in range(TOGETHER)])
        if problem := level.difference(together, alone):
            found.append(f"neighbours: an episode among {TOGETHER} {problem}")
        if len({turn.action.tokens.tobytes() for turns in together for turn in turns[:1]}) == 1:
            found.append(f"seeds: {TOGETHER} episodes with different seeds all began with the same tokens")
        found += await _views(engine, level)
        found += await _cancelled(engine, level, alone)
    async with open_engine() as engine:
        if problem := level.difference(await play(engine), alone):
            found.append(f"engines: a new engine with the same weights {problem}")
        found += await _loading(engine, level, alone, num_turns)
    return found


async def _episode(policy: Policy, index: int, num_turns: int) -> list[Turn]:
    """Play ``num_turns`` turns against observations that are drawn with the seed ``index``."""
    generator, turns = random.Random(index), list[Turn]()
    for turn in range(num_turns):
        observation = Observation.text(" ".join(generator.choices(WORDS, k=generator.randint(1, 9))))
        turns.append(
            Turn(observation, await policy.act(turns, observation, seed=seed_of("check", index, turn)))
        )
    return turns


def _records(episodes: Sequence[Sequence[Turn]], version: int) -> list[str]:
    """Check the tokens, log-probabilities and version that actions record; return the violations."""
    found = []
    for action in (turn.action for episode in episodes for turn in episode):
        if not len(action.tokens) or not len(action.prompt):
            found.append(
                f"records: an action has {len(action.prompt)} prompt tokens and {len(action.tokens)} tokens; "
                "it needs some of both"
            )
        if not (np.isfinite(action.logprobs).all() and (action.logprobs <= 0).all()):
            found.append(
                f"records: log-probabilities must be finite and at most 0, but are {action.logprobs.tolist()}"
            )
        if action.version != version:
            found.append(
                f"versions: an action reports version {action.version}, but the engine has {version}"
            )
    return found


async def _views(engine: Engine, level: _Level) -> list[str]:
    """Check ``using``: token limits and greedy sampling apply to the view, and to nothing else."""
    found, seen = [], Observation.text("you see a door")
    before = await engine.act((), seen, seed=1)
    short = await engine.using(Sampling(max_tokens=1)).act((), seen, seed=1)
    same = short.tokens[0] == before.tokens[0]
    if len(short.tokens) != 1:
        found.append(f"limits: with max_tokens=1 an action has {len(short.tokens)} tokens")
    elif (same or level.rescore is None) and short.clipped == (
        len(before.tokens) == 1 and not before.clipped
    ):
        found.append(
            f"limits: an action with max_tokens=1 reports clipped={short.clipped}; without the limit it has "
            f"{len(before.tokens)} tokens"
        )
    if level.rescore is None and not same:
        found.append("limits: the token limit changed what was sampled before it")
    view = engine.using(Sampling(temperature=0.0, max_tokens=4))
    greedy = [await view.act((), seen, seed=seed) for seed in range(4)]
    if any(_differ(level, greedy[0], other) for other in greedy[1:]):
        found.append("views: temperature 0 gave different tokens for different seeds")
    again = await engine.act((), seen, seed=1)
    if problem := level.difference([[Turn(seen, again)]], [[Turn(seen, before)]]):
        found.append(f"views: after a view was used, the engine that it was made from {problem}")
    return found


def _differ(level: _Level, one: Action, other: Action) -> bool:
    """Return whether greedy actions differ; with a tolerance, a choice between near equals does not count."""
    pairs = zip(one.tokens.tolist(), other.tokens.tolist(), strict=False)
    first = next((index for index, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
    if level.rescore is None or first is None:
        return one.tokens.tobytes() != other.tokens.tobytes()
    mine, theirs = (level.scores((), action, level.weights)[first] for action in (one, other))
    return bool(abs(mine - theirs) > 2 * level.tolerance)


async def _cancelled(engine: Engine, level: _Level, alone: Sequence[Sequence[Turn]]) -> list[str]:
    """Check that cancelled actions do not change another action that is sampled beside them."""
    leaving = [asyncio.ensure_future(_episode(engine, 100 + index, 1)) for index in range(4)]
    staying = asyncio.ensure_future(_episode(engine, 0, 1))
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    problem = level.difference([await staying], [alone[0][:1]])
    return [f"cancelling: an action beside cancelled ones {problem}"] if problem else []


async def _loading(
    engine: Engine, level: _Level, alone: Sequence[Sequence[Turn]], num_turns: int
) -> list[str]:
    """Check ``load``: versions, cached contexts, and actions that are under way during a load."""
    found, seen = [], Observation.text("you see a door")
    await engine.load(level.weights, version=7)
    if engine.version != 7:
        found.append(f"versions: after load(version=7) the engine reports {engine.version}")
    again = await _episode(engine, 0, num_turns)
    found += _records([again], 7)
    version = alone[0][0].action.version
    relabelled = [replace(turn, action=replace(turn.action, version=version)) for turn in again]
    if problem := level.difference([relabelled], alone[:1]):
        found.append(f"weights: the same weights, loaded again, {problem}")
    turns = [Turn(seen, await engine.act((), seen, seed=1))]
    halved = {name: value * 0.5 for name, value in level.weights.items()}
    old = await engine.act(turns, seen, seed=2)
    under_way = asyncio.ensure_future(engine.act(turns, seen, seed=2))
    await asyncio.sleep(0)
    await engine.load(halved, version=8)
    finished = await under_way
    new = await engine.act(turns, seen, seed=2)
    await engine.load(level.weights, version=9)
    restored = await engine.act(turns, seen, seed=2)
    if level.rescore is not None:
        return found + _rescored_loading(level, halved, turns, finished, new, restored)
    if (finished.version, finished) not in ((7, old), (8, new)):
        found.append(
            f"versions: an action under way during a load reports version {finished.version} and has the "
            "tokens of neither weights"
        )
    if np.array_equal(new.logprobs, old.logprobs):
        found.append(
            "weights: other weights gave the same log-probabilities; the engine still uses the old weights, "
            "or a context cached with them"
        )
    if not np.array_equal(restored.logprobs, old.logprobs):
        found.append("weights: the first weights, loaded again, do not give the first log-probabilities")
    return found


def _rescored_loading(
    level: _Level, halved: Weights, turns: Sequence[Turn], finished: Action, new: Action, restored: Action
) -> list[str]:
    """Check actions of old, new and restored weights by rescoring them.

    Raises:
        ConfigError: the tolerance hides the difference between old and new weights.
    """
    found, by_version = list[str](), {7: level.weights, 8: halved}
    moved = float(np.abs(level.scores(turns, new, halved) - level.scores(turns, new, level.weights)).max())
    if moved <= 2 * level.tolerance:
        raise ConfigError(
            f"the check halves the weights, which changes log-probabilities by only {moved:.3g} nats: a "
            f"tolerance of {level.tolerance:g} would hide outdated weights. Lower it, or pass larger weights"
        )
    if finished.version not in by_version:
        found.append(
            f"versions: an action under way during a load reports version {finished.version}, which is "
            "neither the old nor the new one"
        )
    elif problem := level.excess(level.gap(turns, finished, by_version[finished.version])):
        found.append(
            "versions: an action under way during a load, which reports version "
            f"{finished.version}, {problem}"
        )
    if problem := level.excess(level.gap(turns, new, halved)):
        found.append(f"weights: after other weights were loaded, the engine {problem}")
    if problem := level.excess(level.gap(turns, restored, level.weights)):
        found.append(f"weights: after the first weights were loaded again, the engine {problem}")
    return found
