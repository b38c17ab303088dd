"""The conformance suite of engines: one function, one named message for each clause that is not kept.

The clauses are what the rest of agentrl takes for granted: an action is a function of (weights, context, sampling, seed) to the last bit,
whoever else is being served; it records tokens, log-probabilities and the version that sampled them; limits and views hold; new weights are
in force at once, and not before the actions under way have ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np

from agentrl.policy import Engine, Policy, Sampling
from agentrl.types import Action, Observation, Turn, seed_of

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
"""Episodes that are served at the same time."""


def check_engine(
    open_engine: Callable[[], AbstractAsyncContextManager[Engine]],
    *,
    weights: Mapping[str, Any],  # arrays or tensors, of whatever library the engine loads
    num_turns: int = 3,
    deadline_s: float = 240.0,
) -> None:
    """Check an engine against the contract. ``open_engine`` opens a new one each time, always with the same ``weights``.

    The engine must sample (temperature above 0) and allow actions of at least 2 tokens.

    Raises:
        AssertionError: names every clause that is not kept, and what was found.
    """

    async def check() -> list[str]:
        async with asyncio.timeout(deadline_s):
            return await _check(open_engine, weights, num_turns)

    violations = asyncio.run(check())
    if violations:
        raise AssertionError(
            f"{len(violations)} clauses of the engine contract are not kept:\n" + "\n".join(violations)
        )


async def _check(
    open_engine: Callable[[], AbstractAsyncContextManager[Engine]], weights: Mapping[str, Any], num_turns: int
) -> list[str]:
    async with open_engine() as engine:
        alone = [await _episode(engine, index, num_turns) for index in range(2)]
        found = _records(alone, engine.version)
        if alone != [await _episode(engine, index, num_turns) for index in range(2)]:
            found.append("seeds: the same context and seed gave another action when asked again")
        together = await asyncio.gather(*[_episode(engine, index, num_turns) for index in range(TOGETHER)])
        if list(together[:2]) != alone:
            found.append(f"neighbours: an episode among {TOGETHER} differs from the same one alone")
        if len({action.tokens.tobytes() for turns in together for action in turns[:1]}) == 1:
            found.append(f"seeds: {TOGETHER} episodes with different seeds all began with the same tokens")
        found += await _views(engine)
        found += await _cancelled(engine, alone[0][0])
    async with open_engine() as engine:
        if alone != [await _episode(engine, index, num_turns) for index in range(2)]:
            found.append("engines: a new engine with the same weights gave other actions")
        found += await _loading(engine, weights, alone, num_turns)
    return found


async def _episode(policy: Policy, index: int, num_turns: int) -> list[Action]:
    """Play against observations made from ``index``."""
    generator, turns = random.Random(index), list[Turn]()
    for turn in range(num_turns):
        observation = Observation.text(" ".join(generator.choices(WORDS, k=generator.randint(1, 9))))
        turns.append(
            Turn(observation, await policy.act(turns, observation, seed=seed_of("check", index, turn)))
        )
    return [turn.action for turn in turns]


def _records(episodes: Sequence[Sequence[Action]], version: int) -> list[str]:
    """Check what an action records."""
    found = []
    for action in (action for episode in episodes for action in episode):
        if not len(action.tokens) or not len(action.prompt):
            found.append(
                f"records: an action has {len(action.prompt)} prompt tokens and {len(action.tokens)} tokens; both must be there"
            )
        if not (np.isfinite(action.logprobs).all() and (action.logprobs <= 0).all()):
            found.append(
                f"records: log-probabilities must be finite and at most 0, but are {action.logprobs.tolist()}"
            )
        if action.version != version:
            found.append(
                f"versions: an action reports version {action.version} where the engine has {version}"
            )
    return found


async def _views(engine: Engine) -> list[str]:
    """Check ``using``: token limits and greedy sampling hold for the view, and for nobody else."""
    found, seen = [], Observation.text("you see a door")
    before = await engine.act((), seen, seed=1)
    short = await engine.using(Sampling(max_tokens=1)).act((), seen, seed=1)
    if len(short.tokens) != 1:
        found.append(f"limits: with max_tokens=1 an action has {len(short.tokens)} tokens")
    elif short.clipped == (len(before.tokens) == 1 and not before.clipped):
        found.append(
            f"limits: an action cut at one token says clipped={short.clipped}, uncut it has {len(before.tokens)}"
        )
    if short.tokens[0] != before.tokens[0]:
        found.append("limits: the token limit changed what was sampled before it")
    greedy = engine.using(Sampling(temperature=0.0, max_tokens=4))
    if len({(await greedy.act((), seen, seed=seed)).tokens.tobytes() for seed in range(4)}) != 1:
        found.append("views: temperature 0 gave different tokens for different seeds")
    if await engine.act((), seen, seed=1) != before:
        found.append("views: using a view changed the engine it was made from")
    return found


async def _cancelled(engine: Engine, wanted: Action) -> list[str]:
    """Check that an action that nobody waits for any more leaves the others alone."""
    leaving = [asyncio.ensure_future(_episode(engine, 100 + index, 1)) for index in range(4)]
    staying = asyncio.ensure_future(_episode(engine, 0, 1))
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    return (
        [] if (await staying)[0] == wanted else ["cancelling: actions that were given up changed another one"]
    )


async def _loading(
    engine: Engine, weights: Mapping[str, Any], alone: Sequence[Sequence[Action]], num_turns: int
) -> list[str]:
    """Check ``load``: versions, caches, and actions under way."""
    found, seen = [], Observation.text("you see a door")
    await engine.load(weights, version=7)
    if engine.version != 7:
        found.append(f"versions: after load(version=7) the engine reports {engine.version}")
    again = await _episode(engine, 0, num_turns)
    found += _records([again], 7)
    if [(action.tokens.tolist(), action.logprobs.tolist()) for action in again] != [
        (a.tokens.tolist(), a.logprobs.tolist()) for a in alone[0]
    ]:
        found.append("weights: the same weights loaded again gave other actions")
    first = await engine.act((), seen, seed=1)
    turns = [Turn(seen, first)]
    old = await engine.act(turns, seen, seed=2)
    under_way = asyncio.ensure_future(engine.act(turns, seen, seed=2))
    await asyncio.sleep(0)
    await engine.load({name: value * 0.5 for name, value in weights.items()}, version=8)
    finished = await under_way
    if (finished.version, finished) not in ((7, old), (8, await engine.act(turns, seen, seed=2))):
        found.append(
            f"versions: an action under way during a load reports version {finished.version} and has the tokens of neither weights"
        )
    if np.array_equal((await engine.act(turns, seen, seed=2)).logprobs, old.logprobs):
        found.append(
            "weights: other weights gave the same log-probabilities; cached context or weights are still the old ones"
        )
    await engine.load(weights, version=9)
    if not np.array_equal((await engine.act(turns, seen, seed=2)).logprobs, old.logprobs):
        found.append("weights: the first weights, loaded again, do not give the first log-probabilities")
    return found
