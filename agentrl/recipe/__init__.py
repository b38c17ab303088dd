"""A recipe: one frozen value that describes a run.

A recipe file is Python and holds one value called ``recipe`` (``load``). There is no second language and no registry of names: a reward,
credit rule, loss, source or environment is the object itself. ``options.override`` sets fields from the command line, typed by the
dataclasses; ``check`` finds what is wrong with a recipe before any work; ``plan`` says what it will cost.

A run is a sequence of *stages*, and every stage has the same parts: where the episodes come from (a ``Source``), what they are paid,
how credit is assigned, what is optimised. A warm start on demonstrations and reinforcement learning differ in those values alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentrl.credit import Credit, Modifier
from agentrl.engines.spec import EngineSpec, TorchEngine
from agentrl.env import EnvSpec, panel_hash
from agentrl.errors import ConfigError
from agentrl.learner.contract import Scorer
from agentrl.learner.optimiser import Compute, Optimisation
from agentrl.learner.spec import ModelSpec, Teacher
from agentrl.losses.objective import Objective
from agentrl.policy import Policy, Sampling
from agentrl.records.files import replace
from agentrl.records.metrics import MetricSink, TensorBoard
from agentrl.records.monitors import Monitor, default_monitors
from agentrl.render import Renderer, TagRenderer
from agentrl.rewards import Reward, Transform
from agentrl.rewards.outcome import Outcome
from agentrl.rewards.payment import Gauges, Payment
from agentrl.rollout import Host, Limits, Played
from agentrl.samplers import Filter, Sampler
from agentrl.sandbox import SandboxProvider
from agentrl.types import Json, Need, ScoredGroup, Task, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class Playground:
    """What a source plays with: opened once by the run, the same for every stage."""

    agent: Policy
    host: Host
    renderer: Renderer
    tasks: Mapping[str, Sequence[Task]]
    """By split: the tasks that can be played here."""
    limits: Limits
    seed: int
    folder: Path
    on_end: Callable[[Trajectory], None] = lambda _: None
    at: Callable[[float], Policy] | None = None
    """The agent at another temperature."""
    kept: dict[str, Played] = field(default_factory=dict)
    """Demonstrations by stage, as they were read from the run folder."""


@dataclass(slots=True)
class Collected:
    """An update's groups, and what did not become one: counted, never silent."""

    groups: list[ScoredGroup] = field(default_factory=list)
    failures: list[Trajectory] = field(default_factory=list)
    num_dropped: int = 0
    """Groups that were played and are not among ``groups``: dropped by a filter, left with too few episodes, or more than asked for."""
    gauges: Gauges = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    """Metrics that the reward counted while it asked."""
    sampler: Mapping[str, Json] = field(default_factory=dict)
    """State of the sampler once it had observed these groups, and none that were played ahead: a resumed run goes on from here."""
    transforms: Sequence[Mapping[str, Json]] = ()
    """The same of the transforms that remember."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How much a source will play, known before it does."""

    episodes: int
    """Episodes played over all updates of the stage."""
    batch: int
    """Episodes of one update's batch."""
    acted: int
    """Those of ``episodes`` in which the agent itself acts."""


class Source(Protocol):
    """Provides the paid groups of each update. Inherit from it: what most sources do not need has a default."""

    @property
    def split(self) -> str:
        """The split whose tasks it plays."""
        ...

    @property
    def max_staleness(self) -> int:
        """Updates by which playing may run ahead of learning; with 0 playing waits for learning."""
        ...

    @property
    def group_size(self) -> int:
        """Episodes of a task within an update."""
        ...

    @property
    def plays_anew(self) -> bool:
        """Whether the agent plays new episodes for every update; false where the same episodes are used again."""
        return True

    @property
    def refills(self) -> int:
        """How often more tasks are drawn when filters leave fewer groups than asked for."""
        return 0

    @property
    def sampler(self) -> Sampler | None:
        """The sampler whose state checkpoints keep, if it has one."""
        return None

    def expected(self, updates: int) -> Expected | None:
        """Return how much a stage of ``updates`` updates will play; ``None`` where that depends on how the episodes go."""
        return None

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield what is wrong with this source or does not fit ``stage``; ``where`` is the path of its fields in messages."""
        yield from ()

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Return the groups of the stage's ``update``-th update, counted from 0; ``name`` is the stage's name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some updates that are made alike."""

    name: str
    updates: int
    source: Source
    credit: Credit
    objective: Objective
    optimisation: Optimisation
    reward: Reward = field(default_factory=Outcome)
    transforms: tuple[Transform, ...] = ()
    filters: tuple[Filter, ...] = ()
    modifiers: tuple[Modifier, ...] = ()
    teacher: Teacher | None = None
    """Whose opinion of the policy's own tokens is asked, where a piece needs ``teacher_logprobs``."""
    scorers: tuple[Scorer, ...] = ()
    """Process rewards from models that learn beside the policy."""
    epochs: int = 1
    """Passes over an update's batch."""
    minibatches: int = 1
    """Optimiser steps of one pass."""
    evaluate: bool = False
    """Evaluate when the stage ends."""
    evaluate_every: int = 0
    """Also evaluate each so many updates; 0: not."""

    @property
    def payment(self) -> Payment:
        """The stage's rewards, transforms and filters."""
        return Payment(reward=self.reward, transforms=self.transforms, filters=self.filters)

    @property
    def needs(self) -> frozenset[Need]:
        """Every measurement that somebody in the chain asks for."""
        others = (modifier.needs for modifier in self.modifiers), (scorer.needs for scorer in self.scorers)
        return self.credit.needs.union(self.objective.needs, *chain.from_iterable(others))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How the agent is measured while and after it learns."""

    split: str = "test"
    num_tasks: int = 0
    """Tasks of the panel that are played, from its start; 0: all."""
    episodes_per_task: int = 1
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.3))
    baselines: Mapping[str, Policy] = field(default_factory=dict)
    """Policies to measure beside the agent, by the name they get in the final table."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What is kept, and how often. A killed run repeats at most the updates since its last checkpoint, with the same numbers."""

    every: int = 1
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run. Same recipe, same machine, same numbers."""

    name: str
    env: EnvSpec
    model: ModelSpec
    stages: tuple[Stage, ...]
    seed: int = 0
    renderer: Callable[[PreTrainedTokenizerFast], Renderer] = TagRenderer
    sampling: Sampling = field(default_factory=Sampling)
    """How the agent acts while it is trained."""
    engine: EngineSpec = field(default_factory=TorchEngine)
    compute: Compute = field(default_factory=Compute)
    limits: Limits = field(default_factory=Limits)
    """Deadlines, and how many episodes are played at once."""
    num_workers: int = 1
    """Worker processes for environments that block."""
    sandboxes: SandboxProvider | None = None
    """Where tasks that ask for a sandbox get one, such as ``Auto()``, ``TorchEngine()`` or ``Docker()`` of ``agentrl_sandboxes``."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    panels: Mapping[str, str] = field(default_factory=dict)
    """Expected content hash of a split's tasks; a panel that differs is an error."""
    monitors: tuple[Monitor, ...] = field(default_factory=default_monitors)
    """Say, or stop, where a run goes wrong."""
    sinks: tuple[MetricSink, ...] = field(default_factory=lambda: (TensorBoard(),))
    """Where metrics go besides the run folder's JSON lines."""

    @property
    def updates(self) -> int:
        """Updates of all stages."""
        return sum(stage.updates for stage in self.stages)

    def stage_at(self, update: int) -> tuple[Stage, int]:
        """Return the stage that makes ``update``, and the update's number within it."""
        for stage in self.stages:
            if update < stage.updates:
                return stage, update
            update -= stage.updates
        raise IndexError(f"the recipe has {self.updates} updates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a recipe came from: kept in the run folder, which can then be resumed, evaluated and understood by itself."""

    name: str
    """Name of the file, without its folder."""
    source: str
    """The file's text."""
    overrides: tuple[str, ...] = ()
    """What was set on the command line, as ``path=value``."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Text of the modules beside the file that it imports, by name."""

    def keep(self, folder: Path) -> None:
        """Write ``recipe.py``, the modules it imports, and ``overrides.json`` to a run folder."""
        replace(
            folder / "overrides.json",
            json.dumps({"recipe": self.name, "overrides": self.overrides}, indent=1).encode(),
        )
        for name, source in self.modules.items():
            replace(folder / f"{name}.py", source.encode())
        replace(folder / "recipe.py", self.source.encode())


def check_panels(recipe: Recipe) -> dict[str, str]:
    """Return the content hash of every split that the recipe plays, after comparing with ``recipe.panels``.

    Raises:
        ConfigError: a hash differs: these are not the tasks that the recipe was made for.
    """
    splits = {recipe.evaluation.split} | {stage.source.split for stage in recipe.stages} | set(recipe.panels)
    found = {split: panel_hash(recipe.env.tasks(split)) for split in sorted(splits)}
    for split, wanted in recipe.panels.items():
        if found[split] != wanted:
            raise ConfigError(
                f"the tasks of split {split!r} are not those of the recipe: their hash is {found[split]}, the recipe names {wanted}; "
                "delete the environment's cache so that they are made again, or change `panels` if the new tasks are meant"
            )
    return found
