"""A recipe: one frozen value that describes a run.

A recipe file is Python and holds one value called ``recipe`` (``load``). There is no configuration language
and no registry of names: a reward, credit rule, loss, source or environment is the object itself.
``options.override`` sets fields from the command line, with the types of the dataclasses; ``check`` finds
what is wrong with a recipe before any work; ``make_plan`` estimates what it will cost.

A run is a sequence of *stages*, and every stage has the same parts: where the episodes come from (a
``Source``), what they are paid, how credit is assigned, what is optimised. A warm start on demonstrations and
reinforcement learning differ only in the values of these parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    """What a source needs to play episodes; the run opens it once, and it is the same for every stage."""

    agent: Policy
    """The policy that learns."""
    host: Host
    """Opens the environments."""
    renderer: Renderer
    """Turns observations and actions into tokens."""
    tasks: Mapping[str, Sequence[Task]]
    """For each split, the tasks that can be played on this machine."""
    limits: Limits
    """Deadlines, and bounds on turns and on concurrent episodes."""
    seed: int
    """The run's seed."""
    folder: Path
    """The run folder."""
    on_end: Callable[[Trajectory], None] = lambda _: None
    """Called with the trajectory of each episode that ends, failed attempts included."""
    agent_at: Callable[[float], Policy] | None = None
    """Returns the agent at another sampling temperature; ``None`` if it can be sampled only as it is."""
    demonstrations: dict[str, Played] = field(default_factory=dict)
    """For each stage, by name, the demonstrations that were read from the run folder."""


@dataclass(slots=True)
class Collected:
    """An update's groups, and counts of everything that was played but is not in a group."""

    groups: list[ScoredGroup] = field(default_factory=list)
    """The groups to learn from; their trajectories have been given their rewards."""
    failures: list[Trajectory] = field(default_factory=list)
    """Attempts in which the environment, the sandbox or the policy broke."""
    num_dropped: int = 0
    """Groups that were played but are not among ``groups``: a filter dropped them, they were left with too
    few episodes, or they were more than asked for."""
    gauges: Gauges = field(default_factory=dict)
    """What the transforms reported about each episode, by metric; the means over episodes become metrics."""
    counts: dict[str, float] = field(default_factory=dict)
    """Further metrics: counts of the questions to the reward's judges, and the source's own metrics."""
    sampler: Mapping[str, Json] = field(default_factory=dict)
    """The sampler's state after it observed these groups, and before it observed any that were played ahead;
    a resumed run continues from it."""
    transforms: Sequence[Mapping[str, Json]] = ()
    """The states of the transforms that keep one, at the same moment as ``sampler``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How much a source will play; known before it plays."""

    episodes: int
    """Number of episodes played over all updates of the stage."""
    batch: int
    """Number of episodes in one update's batch."""
    acted: int
    """Number of ``episodes`` in which the agent itself acts."""


class Source(Protocol):
    """Provides the groups of each update, whose trajectories have been given their rewards.

    Implementations inherit from this protocol: a member that a class does not define has the default given
    here.
    """

    @property
    def split(self) -> str:
        """The split whose tasks the source plays."""
        ...

    @property
    def max_staleness(self) -> int:
        """Maximum number of updates by which playing may run ahead of learning; with 0, playing waits."""
        ...

    @property
    def group_size(self) -> int:
        """Number of episodes of one task in an update."""
        ...

    @property
    def plays_anew(self) -> bool:
        """Whether the agent plays new episodes for every update; if not, the same episodes are used again."""
        return True

    @property
    def refills(self) -> int:
        """Maximum number of further draws of tasks if filters leave fewer groups than an update asks for."""
        return 0

    @property
    def sampler(self) -> Sampler | None:
        """The sampler whose state checkpoints keep, if it has one."""
        return None

    def expected(self, updates: int) -> Expected | None:
        """Return how much a stage of ``updates`` updates plays; ``None`` if that depends on the episodes."""
        return None

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield one line for each problem of this source, alone or together with the rest of ``stage``.

        ``where`` is put before the names of the source's fields in messages.
        """
        yield from ()

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Return the groups of the stage's ``update``-th update, counted from 0.

        ``name`` is the stage's name; ``min_group`` is the minimum number of episodes that
        the stage's credit needs in a group.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A number of consecutive updates that are all made in the same way."""

    name: str
    """The stage's name, unique in the recipe; metrics, stored episodes and evaluations carry it."""
    updates: int
    """Number of updates that the stage makes; an update is one call of the learner on one batch."""
    source: Source
    """Where the episodes of each update come from, such as ``Rollouts`` or ``Demonstrations``."""
    credit: Credit
    """Assigns an advantage to each action token, such as ``GRPO()`` or ``TokenGAE()``."""
    objective: Objective
    """What an update minimises: a loss, regularisers, a critic's loss."""
    optimisation: Optimisation
    """The optimiser's numbers, such as the learning rate and its schedule; the optimiser starts fresh with
    the stage."""
    reward: Reward = field(default_factory=Outcome)
    """Gives each turn of an episode its reward, by named component; by default, success on the last turn."""
    transforms: tuple[Transform, ...] = ()
    """Changes to an episode's rewards, applied in this order after ``reward``, such as clips and gates."""
    filters: tuple[Filter, ...] = ()
    """Choose, in this order, which groups are trained on once rewards are known; the groups that they drop
    are counted in the metric ``filter/dropped``."""
    modifiers: tuple[Modifier, ...] = ()
    """Changes to the advantages, applied in this order after credit, such as whitening."""
    teacher: Teacher | None = None
    """Computes ``teacher_logprobs`` if a part of the stage needs them; ``None`` if there is no teacher."""
    scorers: tuple[Scorer, ...] = ()
    """Models that learn beside the policy and reward single turns; each adds a component to the rewards."""
    epochs: int = 1
    """Number of passes over an update's batch."""
    minibatches: int = 1
    """Number of minibatches that each pass divides the batch into; each is one optimiser step."""
    evaluate: bool = False
    """Whether to evaluate the agent after the stage's last update."""
    evaluate_every: int = 0
    """Number of updates of the stage from one evaluation of the agent to the next; 0 makes none of these."""

    @property
    def payment(self) -> Payment:
        """The stage's reward, transforms and filters."""
        return Payment(reward=self.reward, transforms=self.transforms, filters=self.filters)

    @property
    def needs(self) -> frozenset[Need]:
        """Every measurement on action tokens that a part of the stage asks for."""
        needs = self.credit.needs | self.objective.needs
        for modifier in self.modifiers:
            needs |= modifier.needs
        for scorer in self.scorers:
            needs |= scorer.needs
        return needs


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How the agent is measured during and after training."""

    split: str = "test"
    """The split whose tasks, the panel, are played."""
    num_tasks: int = 0
    """Number of tasks that are played, from the first one of the panel on; 0 plays all of them."""
    episodes_per_task: int = 1
    """Number of episodes of each task."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.3))
    """How the agent samples actions in an evaluation."""
    baselines: Mapping[str, Policy] = field(default_factory=dict)
    """Policies that are measured once, before training; the keys are their names in the final table."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """How often checkpoints are written, and how many are kept.

    A killed run repeats the updates since its last checkpoint, and gets the same numbers.
    """

    every: int = 1
    """Number of updates from one checkpoint to the next; the last update of a stage always makes one."""
    keep: int = 2
    """Number of the newest checkpoints that are kept."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run. The same recipe on the same machine gives the same numbers."""

    name: str
    """The recipe's name; the default run folder is ``runs/<name>``."""
    env: EnvSpec
    """The environment that is played."""
    model: ModelSpec
    """The model that learns: pretrained weights or a shape with random ones, and its tokenizer."""
    stages: tuple[Stage, ...]
    """The stages, in the order in which they are run; at least one."""
    seed: int = 0
    """The seed from which every random choice of the run is derived."""
    renderer: Callable[[PreTrainedTokenizerFast], Renderer] = TagRenderer
    """Makes the renderer, which turns messages into tokens and back, from the run's tokenizer."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the agent samples actions while it is trained."""
    engine: EngineSpec = field(default_factory=TorchEngine)
    """The engine that samples the agent's actions."""
    compute: Compute = field(default_factory=Compute)
    """Device, precision, threads and micro-batch size of the learner."""
    limits: Limits = field(default_factory=Limits)
    """Deadlines in seconds, and bounds on turns, attempts and concurrent episodes."""
    num_workers: int = 1
    """Number of worker processes for an environment that blocks; any other one is played in this process."""
    sandboxes: SandboxProvider | None = None
    """Opens sandboxes for tasks that ask for one: ``Auto()``, ``Local()`` or ``Docker()`` of
    ``agentrl_sandboxes``, for example; if it is ``None``, no task may ask for a sandbox."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How the agent is measured, and on which tasks; the stages decide when."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """How often checkpoints are written, and how many are kept."""
    panels: Mapping[str, str] = field(default_factory=dict)
    """For each split, the expected content hash of its tasks; a run whose tasks have another is refused."""
    monitors: tuple[Monitor, ...] = field(default_factory=default_monitors)
    """Watch the metrics of each update, and warn or stop the run if learning goes wrong."""
    sinks: tuple[MetricSink, ...] = field(default_factory=lambda: (TensorBoard(),))
    """Where metrics are written in addition to the run folder's ``metrics.jsonl``."""

    @property
    def updates(self) -> int:
        """Total number of updates, over all stages."""
        return sum(stage.updates for stage in self.stages)

    @property
    def splits(self) -> frozenset[str]:
        """Every split that the recipe plays or whose hash it states."""
        return frozenset(
            {self.evaluation.split, *(stage.source.split for stage in self.stages), *self.panels}
        )

    def panel(self, playable: Sequence[Task]) -> list[Task]:
        """Return the tasks that are evaluated: the first ``num_tasks`` of the split, if they are playable.

        A task that cannot be played here is not replaced by a later one, so the evaluations of two machines
        differ only in what is missing.

        Raises:
            ConfigError: none of them is playable.
        """
        split, num_tasks = self.evaluation.split, self.evaluation.num_tasks
        first = self.env.tasks(split)[: num_tasks or None]
        ids = {task.id for task in playable}
        panel = [task for task in first if task.id in ids]
        if not panel:
            raise ConfigError(
                f"none of the first {len(first)} tasks of split {split!r} can be played here, so there is "
                "nothing to evaluate; provide the images that they need, or raise evaluation.num_tasks"
            )
        return panel

    def stage_at(self, update: int) -> tuple[Stage, int]:
        """Return the stage that makes the run's ``update``, and the update's number in it, both from 0."""
        for stage in self.stages:
            if update < stage.updates:
                return stage, update
            update -= stage.updates
        raise IndexError(f"the recipe has {self.updates} updates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a recipe came from.

    It is kept in the run folder, which can then be resumed and evaluated by itself.
    """

    name: str
    """Name of the recipe file, without its folder."""
    source: str
    """The file's text."""
    overrides: tuple[str, ...] = ()
    """Fields that were set on the command line, each as ``path=value``."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """The text of each module that the recipe file imports from its own folder, by the module's name."""

    def keep(self, folder: Path) -> None:
        """Write ``recipe.py``, the modules that it imports, and ``overrides.json`` to a run's folder."""
        replace(
            folder / "overrides.json",
            json.dumps({"recipe": self.name, "overrides": self.overrides}, indent=1).encode(),
        )
        for name, source in self.modules.items():
            replace(folder / f"{name}.py", source.encode())
        replace(folder / "recipe.py", self.source.encode())


def check_panels(recipe: Recipe) -> dict[str, str]:
    """Return the content hash of every split that the recipe plays; compare the hashes with ``panels``.

    Raises:
        ConfigError: a hash differs: these are not the tasks that the recipe was made for.
    """
    found = {split: panel_hash(recipe.env.tasks(split)) for split in sorted(recipe.splits)}
    for split, wanted in recipe.panels.items():
        if found[split] != wanted:
            raise ConfigError(
                f"the tasks of split {split!r} are not those of the recipe: their hash is {found[split]}, "
                f"and the recipe expects {wanted}; delete the environment's cache so that they are made "
                "again, or change `panels` if you want the new tasks"
            )
    return found
