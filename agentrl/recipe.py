"""A recipe: one frozen value that describes a run, and the checks that it can be run before anything is.

A recipe file is Python and holds one value called ``recipe``; it may import modules that lie beside it. There is no second language and
no registry of names: a reward, credit rule, loss, source or environment is the object itself. ``options.override`` sets fields from the
command line, typed by the dataclasses; ``check`` finds what is wrong with a recipe before any work.

A run is a sequence of *stages*. Every stage is made of the same parts and goes the same way: where the episodes come from, what they are
paid, how credit is assigned, what is optimised. A warm start on demonstrations and reinforcement learning differ in those values alone.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from agentrl.credit import Credit, Modifier
from agentrl.engines.spec import EngineSpec, Local
from agentrl.env import EnvSpec, panel_hash
from agentrl.errors import AgentRLError, CheckpointError, ConfigError
from agentrl.files import replace
from agentrl.learner import Compute, Optimisation
from agentrl.metrics import Sink, TensorBoard
from agentrl.model import FastTokenizer, ModelSpec
from agentrl.monitors import Monitor, usual
from agentrl.objective import Objective
from agentrl.options import check_types, override
from agentrl.policy import Policy, Sampling
from agentrl.render import Renderer, TagRenderer
from agentrl.rewards import Reward, Transform
from agentrl.rewards.outcome import Outcome
from agentrl.rollout import Limits
from agentrl.samplers import Filter
from agentrl.sandbox import SandboxProvider
from agentrl.scorers import Scorer
from agentrl.sources import Demonstrations, Guiding, Payment, Source
from agentrl.teacher import Teacher
from agentrl.types import Need


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
    renderer: Callable[[FastTokenizer], Renderer] = TagRenderer
    sampling: Sampling = field(default_factory=Sampling)
    """How the agent acts while it is trained."""
    engine: EngineSpec = field(default_factory=Local)
    compute: Compute = field(default_factory=Compute)
    limits: Limits = field(default_factory=Limits)
    """Deadlines, and how many episodes are played at once."""
    num_workers: int = 1
    """Worker processes for environments that block."""
    sandboxes: SandboxProvider | None = None
    """Where tasks that ask for a sandbox get one, such as ``Auto()``, ``Local()`` or ``Docker()`` of ``agentrl_sandboxes``."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    panels: Mapping[str, str] = field(default_factory=dict)
    """Expected content hash of a split's tasks; a panel that differs is an error."""
    monitors: tuple[Monitor, ...] = field(default_factory=usual)
    """Say, or stop, where a run goes wrong."""
    sinks: tuple[Sink, ...] = field(default_factory=lambda: (TensorBoard(),))
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


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the value called ``recipe`` of a Python file, with ``overrides`` applied; raises as ``read``."""
    return read(path, overrides)[0]


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Origin]:
    """Return the recipe of a Python file, or the one that a run folder keeps, with ``overrides`` applied; and where it came from.

    Raises:
        ConfigError: no such file, it raises, or it holds no recipe; or an override does not fit.
    """
    name, given = path.name, tuple(overrides)
    if path.is_dir():
        file, record = path / "recipe.py", path / "overrides.json"
        if not file.is_file() or not record.is_file():
            raise ConfigError(
                f"the folder {path} is no run folder: it lacks recipe.py or overrides.json; give a recipe file or a run folder"
            )
        try:
            kept = json.loads(record.read_text())
            name, given, path = kept["recipe"], (*kept["overrides"], *given), file
        except (ValueError, KeyError, TypeError) as problem:
            raise CheckpointError(
                f"{record} is damaged ({problem}); write it again, or give the recipe file and --out {path}"
            ) from problem
    if not path.is_file():
        raise ConfigError(
            f"no recipe file {str(path)!r}; recipes of this project are in recipes/, one Python file each"
        )
    with _beside(path.resolve().parent) as modules:
        recipe = _execute(path, Path(name).stem)
    return override(recipe, given), Origin(
        name=name, source=path.read_text(), overrides=given, modules=modules
    )


@contextmanager
def _beside(folder: Path) -> Iterator[dict[str, str]]:
    """Let the modules in ``folder`` be imported; what was, by name, with its text, is in the dictionary afterwards.

    They are imported anew, and forgotten again: a recipe and an older copy of it, kept by a run, each see their own.
    """
    stems = {path.stem for path in folder.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in stems & sys.modules.keys()}
    imported: dict[str, str] = {}
    sys.path.insert(0, str(folder))
    try:
        yield imported
    finally:
        sys.path.remove(str(folder))
        for name in sorted(stems & sys.modules.keys()):
            del sys.modules[name]
            imported[name] = (folder / f"{name}.py").read_text()
        sys.modules.update(hidden)


def _execute(path: Path, stem: str) -> Recipe:
    """Run a recipe file as the module it was first run as: descriptions name classes by their module."""
    spec = importlib.util.spec_from_file_location(f"agentrl_recipe_{stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{str(path)!r} is no Python file; a recipe file ends in .py and holds a value `recipe = Recipe(...)`"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except AgentRLError:
        raise
    except Exception as problem:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(problem.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        where = f", line {lines[-1]}" if lines else ""  # a syntax error names its own
        raise ConfigError(
            f"recipe {str(path)!r} does not load{where}: {type(problem).__name__}: {problem}"
        ) from problem
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{str(path)!r} must hold a value `recipe = Recipe(...)`; found {type(recipe).__name__}"
        )
    return recipe


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot run as meant, before any work.

    Raises:
        ConfigError: lists everything that is wrong, each with what was found and how to mend it.
    """
    problems = list(check_types(recipe)) or list(_problems(recipe))
    if problems:
        raise ConfigError(
            f"recipe {recipe.name!r} cannot run:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


def _problems(recipe: Recipe) -> Iterator[str]:
    if (max_turns := getattr(recipe.env, "max_turns", 0)) < 1:  # an environment may forget it
        yield f"env.max_turns is {max_turns}; an episode needs at least 1 turn"
    yield from _too_small(recipe, "", num_workers=1)
    yield from _too_small(recipe.checkpoints, "checkpoints.", every=1, keep=1)
    yield from _too_small(recipe.limits, "limits.", concurrency=1, max_attempts=1, max_turns=0)
    yield from _too_small(recipe.evaluation, "evaluation.", num_tasks=0, episodes_per_task=1)
    yield from _too_small(recipe.compute, "compute.", token_budget=1, threads=0)
    for where, sampling in (
        ("sampling.", recipe.sampling),
        ("evaluation.sampling.", recipe.evaluation.sampling),
    ):
        yield from _too_small(sampling, where, max_tokens=1, top_k=0)
        if not 0 < sampling.top_p <= 1:
            yield f"{where}top_p is {sampling.top_p:g}; it must be above 0 and at most 1"
    if recipe.sampling.temperature <= 0:
        yield (
            f"sampling.temperature is {recipe.sampling.temperature:g}; training divides by it and learns from variety: give more than 0 "
            "(evaluation.sampling may be greedy)"
        )
    if not recipe.stages:
        yield "stages is empty; a run needs at least one stage"
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        yield f"stage names repeat: {', '.join(names)}; each stage needs a name of its own"
    for stage in recipe.stages:
        for problem in _stage_problems(recipe, stage):
            yield f"stage {stage.name!r}: {problem}"
    splits = {recipe.evaluation.split} | {stage.source.split for stage in recipe.stages} | set(recipe.panels)
    for split in sorted(splits - set(recipe.env.splits)):
        yield f"split {split!r} does not exist; the environment has {', '.join(recipe.env.splits)}"


def _too_small(part: object, where: str, **least: int) -> Iterator[str]:
    """Yield a line for each field that ``part`` has and that is below its least value: it would wait, or play, for nothing."""
    for name, low in least.items():
        found = getattr(part, name, low)
        if found < low:
            yield f"{where}{name} is {found}; at least {low} is needed"


def _stage_problems(recipe: Recipe, stage: Stage) -> Iterator[str]:
    yield from _too_small(stage, "", updates=1, epochs=1, minibatches=1)
    yield from _source_problems(stage, stage.source)
    if stage.source.group_size < stage.credit.min_group:
        yield (
            f"{type(stage.credit).__name__} compares the episodes of a group and needs at least {stage.credit.min_group} of them; "
            f"group_size is {stage.source.group_size}"
        )
    if stage.objective.whole_groups and stage.source.group_size < 2:
        yield "the objective compares the episodes of a group, and group_size is 1; give at least 2, or another loss"
    for transform in stage.payment.remembering if isinstance(stage.source, Demonstrations) else ():
        yield f"{type(transform).__name__} learns from what the agent does, and demonstrations stay the same; use it where the agent plays"
    if "teacher_logprobs" in stage.needs and stage.teacher is None:
        yield "a piece of it needs teacher_logprobs, and there is no teacher; set Stage.teacher, such as Teacher(information=expert_plan)"
    declared = set(recipe.env.signals)
    for part in (stage.reward, *stage.transforms):
        unknown = sorted(set(getattr(part, "signals", ())) - declared)
        if unknown:
            yield f"reward {type(part).__name__} reads {', '.join(unknown)}; the environment reports {', '.join(sorted(declared))}"
    for keep in stage.filters:
        unpaid = sorted(keep.components - stage.reward.components)
        if unpaid and not stage.transforms:
            paid = ", ".join(sorted(stage.reward.components))
            yield f"filter {type(keep).__name__} looks at the reward component {', '.join(unpaid)}; the stage pays {paid}"
    truncates = recipe.sampling.top_p < 1 or recipe.sampling.top_k > 0
    if truncates and not isinstance(stage.source, Demonstrations) and "old_logprobs" not in stage.needs:
        yield (
            "sampling.top_p or top_k truncates what is sampled, but the loss compares with the log-probabilities of the sampler; "
            "use top_p=1 and top_k=0, or an objective with off_policy weights"
        )
    if stage.source.max_staleness > 0 and "old_logprobs" not in stage.needs:
        yield "max_staleness > 0 trains on older weights' episodes; give the objective off_policy weights (losses.tis) to correct for it"


def _source_problems(stage: Stage, source: Source, where: str = "source.") -> Iterator[str]:
    yield from _too_small(source, where, num_groups=1, num_episodes=1, refills=0, max_staleness=0, batch=0)
    if isinstance(source, Guiding):
        yield from source.problems(stage)
        if source.filters_last and getattr(source.source, "refills", 0) > 0:
            yield f"{where}source.refills draws anew what filters dropped, and filters act after {type(source).__name__}; set it to 0"
        if isinstance(source.source, Demonstrations):
            yield f"{type(source).__name__} guides an agent that plays, and demonstrations are played once; put Rollouts within it"
        yield from _source_problems(stage, source.source, f"{where}source.")


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
