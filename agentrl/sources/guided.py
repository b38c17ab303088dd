"""Guidance: sources that look at how an update's groups went, and play more where the agent alone learned nothing.

Each stands around another source (``Rollouts``, or guidance of another kind) and is one method: a hint where a whole group failed, a
demonstration in the place of a group that is too hard, a refinement after a critique, more variety where entropy is low, a teacher that is
told more. They differ in what they make of it:

- what was played *with* a hint in the prompt keeps the hint in its record: the agent sampled it from there, and it is trained like any;
- what the agent did not sample from the context that it is trained in is *given* (``Trajectory.given``): there is no ratio to a sampler.
  ``losses.origin.ByOrigin`` has a loss for either, and ``credit.given.Given`` an advantage for groups that hold nothing else.

Filters act after the guidance and never on groups that are given. Nothing is remembered from update to update, so a resumed run does what
the killed one would have done. An episode that stands for another has that one's number ``n`` as ``-1 - n``.
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
    """What a guidance works with in one update; what it plays is paid and counted in ``collected``."""

    ground: Playground
    payment: Payment
    collected: Collected
    seed: int
    update: int

    async def play(
        self, draws: Sequence[Draw], *, policy: Policy | None = None, part: object = ""
    ) -> dict[tuple[str, int], Scored]:
        """Play ``draws`` (by the agent, unless ``policy`` says otherwise) and return what ended, paid, by task and number."""
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
        judged, counts = await self.payment.inquire(played.groups)
        for name, count in counts.items():
            self.count(name, count)
        return {
            place(scored): scored
            for group in self.payment.score(judged, self.collected.gauges)
            for scored in group
        }

    def count(self, name: str, number: float = 1.0) -> None:
        """Add to a metric of the update."""
        self.collected.counts[name] = self.collected.counts.get(name, 0.0) + number


@dataclass(frozen=True, slots=True, kw_only=True)
class Guided(Source, ABC):
    """A source around another one."""

    filters_last: ClassVar[bool] = True
    """Whether filters act after it, so that the source within has none."""
    source: Source

    @property
    def split(self) -> str:
        """The tasks it plays."""
        return self.source.split

    @property
    def max_staleness(self) -> int:
        """As of the source within."""
        return self.source.max_staleness

    @property
    def group_size(self) -> int:
        """As of the source within."""
        return self.source.group_size

    @property
    def sampler(self) -> Sampler | None:
        """As of the source within."""
        return self.source.sampler

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield what does not fit, here and in the source within."""
        yield from self.misfits(stage)
        kind = type(self).__name__
        if self.filters_last and self.source.refills > 0:
            yield (
                f"{where}source.refills draws anew what filters dropped, and filters act after {kind}; set it to 0"
            )
        if not self.source.plays_anew:
            yield (
                f"{kind} guides an agent that plays, and demonstrations are played once; put Rollouts within it"
            )
        yield from self.source.problems(stage, f"{where}source.")

    def misfits(self, stage: Stage) -> Iterator[str]:
        """Yield what of ``stage``, or of its own fields, does not go with this kind of guidance."""
        yield from ()

    @abstractmethod
    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups that are trained on, in the place of those that were played."""

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Collect the source's groups, guide, then filter what was not given."""
        within = replace(payment, filters=())
        collected = await self.source.collect(ground, within, name=name, update=update, min_group=min_group)
        seed = seed_of(ground.seed, name, type(self).__name__, update)
        guided = await self.guide(Lesson(ground, payment, collected, seed, update), collected.groups)
        own = [group for group in guided if not is_given(group)]
        kept = payment.keep(own)
        collected.num_dropped += len(own) - len(kept)
        collected.groups = [*kept, *(group for group in guided if is_given(group))]
        return collected


def place(scored: Scored) -> tuple[str, int]:
    """Return the episode's task and number."""
    return scored.trajectory.task.id, scored.trajectory.sample


def again(scored: Scored, *, told: str = "") -> Draw:
    """Return the draw of an episode that stands for ``scored``: the same task from the same start, with something told."""
    trajectory = scored.trajectory
    start = tuple(
        turn.action.text for turn in takewhile(lambda turn: not len(turn.action.tokens), trajectory.turns)
    )
    replayed = start if trajectory.num_tokens else ()  # who is no language model has no tokens anywhere
    return Draw(trajectory.task, 1, stand_in(trajectory.sample), replayed, told)


def untold(trajectory: Trajectory, text: str, renderer: Renderer) -> Trajectory:
    """Return the trajectory as if ``text`` had never been told: the same tokens in the context without it, and therefore given.

    The log-probabilities stay those of the distribution that sampled.

    Raises:
        ValueError: the first observation does not begin with ``text``.
    """
    turns: list[Turn] = []
    for index, turn in enumerate(trajectory.turns):
        if index == 0:
            turn = replace(turn, observation=_without(turn.observation, text))
        if len(turn.action.tokens):
            prompt = renderer.prompt(turns, turn.observation)
            turn = replace(
                turn, action=replace(turn.action, prompt=prompt.tokens, fresh=prompt.fresh, version=-1)
            )
        turns.append(turn)
    return replace(trajectory, turns=tuple(turns))


def needs_origin(guidance: Guided, stage: Stage) -> Iterator[str]:
    """Yield a line where the stage's loss has nothing for tokens that were given."""
    if not stage.objective.loss.handles_given:
        kind, loss = type(guidance).__name__, type(stage.objective.loss).__name__
        yield (
            f"{kind} brings tokens that the agent did not sample from their context, and {loss} alone treats all alike; "
            f"use objective.loss=ByOrigin(own={loss}(...), given=NegativeLogLikelihood())"
        )


def needs_given(guidance: Guided, stage: Stage) -> Iterator[str]:
    """Yield a line where the stage's credit has nothing for groups that were given."""
    if not stage.credit.handles_given:
        kind, credit = type(guidance).__name__, type(stage.credit).__name__
        yield f"{kind} brings groups of nothing but successes, and {credit} would compare them; use credit=Given({credit}(...))"


def _without(observation: Observation, text: str) -> Observation:
    *before, last = observation.messages
    if not last.content.startswith(text):
        raise ValueError(f"the first observation was to begin with {text!r}; it reads {last.content[:80]!r}")
    return replace(observation, messages=(*before, replace(last, content=last.content[len(text) :])))
