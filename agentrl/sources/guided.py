"""Guidance: sources that play more episodes for tasks from which the agent alone learns nothing.

Each wraps another source (``Rollouts``, or another kind of guidance) and implements one method from the
literature. The methods give a hint if a whole group failed, put a demonstration in place of a group that is
too hard, refine an episode after a critique, add variety if entropy is low, or use a teacher with privileged
information. The added episodes are of two kinds:

- Played *with* a hint in the prompt. The record keeps the hint: the agent sampled the actions from that very
  context, so they are trained like any others.
- *Given* (``Trajectory.given``): the agent did not sample them from the context that they are trained in, so
  probability ratios between the policy and the sampler are meaningless for them. ``losses.origin.ByOrigin``
  applies a loss of its own to given tokens, and ``credit.given.Given`` sets the advantage of groups in which
  every episode is given.

Filters are applied after the guidance, and never to given groups. No state is carried from one update to the
next, so a resumed run behaves as if it had not been stopped. An episode that stands in for episode number
``n`` has the number ``-1 - n`` (``types.stand_in``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import ClassVar

from agentrl.policy import Policy
from agentrl.recipe import Collected, Playground, Source, Stage
from agentrl.render import Renderer
from agentrl.rewards.payment import Payment
from agentrl.rollout import play_all
from agentrl.samplers import Draw, Sampler
from agentrl.types import Observation, Scored, ScoredGroup, Trajectory, Turn, is_given, seed_of, stand_in


@dataclass(slots=True)
class Lesson:
    """The inputs and tools that guidance gets for one update.

    The rewards of the episodes that it plays are computed. Failed attempts and metrics are added to
    ``collected``.
    """

    ground: Playground
    payment: Payment
    """The stage's payment. ``play`` applies its reward and transforms, but not its filters."""
    collected: Collected
    seed: int
    update: int
    """The update's number within its stage, from 0."""

    async def play(
        self, draws: Sequence[Draw], *, policy: Policy | None = None, part: object = ""
    ) -> dict[tuple[str, int], Scored]:
        """Play ``draws`` with ``policy``, by default the agent; return the paid episodes by ``episode_key``.

        Episodes that failed in every attempt, or that could not be judged, are not among them. Pass a
        different ``part`` to each call within an update, so that each has its own seeds.
        """
        ground = self.ground
        seed = seed_of(self.seed, part)
        played = await play_all(
            draws,
            policy=policy or ground.agent,
            host=ground.host,
            seed=seed,
            limits=ground.limits,
            on_end=ground.on_end,
        )
        self.collected.failures += played.failures
        judged, counts = await self.payment.judge(played.groups)
        for name, count in counts.items():
            self.count(name, count)
        groups = self.payment.score(judged, self.collected.gauges)
        return {episode_key(scored): scored for group in groups for scored in group}

    def count(self, name: str, number: float = 1.0) -> None:
        """Add ``number`` to the update's metric ``name``."""
        self.collected.counts[name] = self.collected.counts.get(name, 0.0) + number


@dataclass(frozen=True, slots=True, kw_only=True)
class Guided(Source, ABC):
    """Guidance: a source that wraps another one."""

    filters_last: ClassVar[bool] = True
    """Whether the stage's filters are applied to the guided groups, and not inside the wrapped source."""
    source: Source
    """The wrapped source, which collects the groups that are guided."""

    @property
    def split(self) -> str:
        """The same as that of the wrapped source."""
        return self.source.split

    @property
    def max_staleness(self) -> int:
        """The same as that of the wrapped source."""
        return self.source.max_staleness

    @property
    def group_size(self) -> int:
        """The same as that of the wrapped source."""
        return self.source.group_size

    @property
    def sampler(self) -> Sampler | None:
        """The same as that of the wrapped source."""
        return self.source.sampler

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield a message for each thing in this source or the wrapped one that does not fit ``stage``."""
        yield from self.own_problems(stage)
        kind = type(self).__name__
        if self.filters_last and self.source.refills > 0:
            yield (
                f"{where}source.refills is {self.source.refills}; refills replace groups that filters drop, "
                f"and here filters are applied after {kind}; set it to 0"
            )
        if not self.source.plays_anew:
            yield (
                f"{kind} guides episodes that the agent plays anew for every update, and "
                f"{type(self.source).__name__} uses the same ones again; let it wrap Rollouts"
            )
        yield from self.source.problems(stage, f"{where}source.")

    def own_problems(self, stage: Stage) -> Iterator[str]:
        """Yield a message for each wrong field, and for each part of ``stage`` that does not fit."""
        yield from ()

    @abstractmethod
    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups to train on, given those that the wrapped source collected."""

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Collect the wrapped source's groups, guide them, then filter those that are not given."""
        unfiltered = replace(payment, filters=())
        collected = await self.source.collect(
            ground, unfiltered, name=name, update=update, min_group=min_group
        )
        seed = seed_of(ground.seed, name, type(self).__name__, update)
        guided = await self.guide(Lesson(ground, payment, collected, seed, update), collected.groups)
        own = [group for group in guided if not is_given(group)]
        kept = payment.keep(own)
        collected.num_dropped += len(own) - len(kept)
        collected.groups = [*kept, *(group for group in guided if is_given(group))]
        return collected


def episode_key(scored: Scored) -> tuple[str, int]:
    """Return the id of the episode's task, and the episode's number."""
    return scored.trajectory.task.id, scored.trajectory.sample


def draw_again(scored: Scored, *, preamble: str = "") -> Draw:
    """Return a draw that plays a replacement for ``scored``.

    The replacement plays the same task from the same start: actions that were replayed as a prefix are
    replayed again. ``preamble`` is put before its first observation.
    """
    trajectory = scored.trajectory
    prefix: tuple[str, ...] = ()
    if trajectory.num_tokens:  # else the policy is not a language model, and a prefix cannot be recognised
        replayed = takewhile(lambda turn: not len(turn.action.tokens), trajectory.turns)
        prefix = tuple(turn.action.text for turn in replayed)
    return Draw(trajectory.task, 1, stand_in(trajectory.sample), prefix, preamble)


def without_preamble(trajectory: Trajectory, preamble: str, renderer: Renderer) -> Trajectory:
    """Return the trajectory with its tokens unchanged and ``preamble`` removed from the context.

    The agent did not sample the tokens from that context, so they count as given. Their log-probabilities
    stay those of the distribution that they were sampled from.

    Raises:
        ValueError: the first observation does not begin with ``preamble``.
    """
    turns: list[Turn] = []
    for index, turn in enumerate(trajectory.turns):
        if index == 0:
            turn = replace(turn, observation=_without(turn.observation, preamble))
        if len(turn.action.tokens):
            prompt = renderer.prompt(turns, turn.observation)
            turn = replace(
                turn, action=replace(turn.action, prompt=prompt.tokens, fresh=prompt.fresh, version=-1)
            )
        turns.append(turn)
    return replace(trajectory, turns=tuple(turns))


def loss_problems(guidance: Guided, stage: Stage) -> Iterator[str]:
    """Yield a problem if the stage's loss treats given tokens like those that the agent sampled."""
    if not stage.objective.loss.handles_given:
        kind, loss = type(guidance).__name__, type(stage.objective.loss).__name__
        yield (
            f"{kind} adds tokens that the agent did not sample from their context, and {loss} alone treats "
            f"all tokens alike; use objective.loss=ByOrigin(own={loss}(...), given=NegativeLogLikelihood())"
        )


def credit_problems(guidance: Guided, stage: Stage) -> Iterator[str]:
    """Yield a problem if the stage's credit treats given groups like those that the agent played."""
    if not stage.credit.handles_given:
        kind, credit = type(guidance).__name__, type(stage.credit).__name__
        yield (
            f"{kind} adds groups that hold only successes, and {credit} would compare them with each other; "
            f"use credit=Given({credit}(...))"
        )


def _without(observation: Observation, preamble: str) -> Observation:
    *before, last = observation.messages
    if not last.content.startswith(preamble):
        raise ValueError(
            f"the first observation must begin with {preamble!r}; it begins with {last.content[:80]!r}"
        )
    return replace(observation, messages=(*before, replace(last, content=last.content[len(preamble) :])))
