"""A run: what is held open while training, and the folder that remembers it.

```
runs/demo/
  recipe.json  manifest.json      what was run, on what
  recipe.py  overrides.json       the recipe's source: the folder alone is enough to resume or evaluate
  tokenizer/                      trained once, or copied
  demonstrations/<stage>.parquet  episodes that a stage learns from again and again
  trajectories/update=000037/     every turn: text, tokens, log-probabilities, ledger, advantages
  metrics.jsonl  timing.jsonl     metrics that a rerun repeats exactly; timings, which it does not
  tensorboard/
  evaluations/<name>.json         reports, and the episodes beside them
  results.md  results.json        the final tables
  checkpoints/000038/             model (a Hugging Face folder), optimiser, value head, sampler state
```

**Exact resume.** The rename of a checkpoint commits everything before it. Opening a folder again returns to
the newest whole checkpoint and drops whatever was written after it. Every seed is derived from the update's
number, so on the CPU the resumed run produces the numbers of a run that was never killed.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import Collapsed, ConfigError
from agentrl.evaluation.reporter import Reporter
from agentrl.hosts import open_host
from agentrl.hosts.images import playable
from agentrl.learner import checkpoint
from agentrl.learner.batch import make_batch
from agentrl.learner.contract import Learner, MakeLearner, OpenScorer
from agentrl.learner.learner import make_learner
from agentrl.learner.model import load_tokenizer, train_tokenizer
from agentrl.learner.spec import TrainedTokenizer
from agentrl.learner.teacher import OpenTeacher, open_teacher
from agentrl.learner.torch_parts import use_threads
from agentrl.options import describe
from agentrl.policy import Engine, ExpertPolicy, RandomPolicy
from agentrl.recipe import Origin, Playground, Recipe, Stage, check_panels
from agentrl.records.folder import claimed
from agentrl.records.manifest import make_manifest, reconcile
from agentrl.records.metrics import MetricsLog
from agentrl.records.store import drop_trajectories_after
from agentrl.render import Renderer
from agentrl.rollout import Host, Limits, play_all
from agentrl.samplers import Draw
from agentrl.types import Credited, Json, ScoredGroup, Task, seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(slots=True)
class Learners:
    """The policy's learner, and for each stage, by name, the scorers and the teacher that it uses."""

    policy: Learner
    scorers: Mapping[str, tuple[OpenScorer, ...]]
    teachers: Mapping[str, OpenTeacher]

    def start(self, stage: Stage) -> None:
        """Begin a stage: optimisers are fresh, and scorers start from the policy's weights."""
        self.policy.start(stage.optimisation, stage.updates)
        for scorer in self.scorers[stage.name]:
            scorer.start(self.policy.weights(), stage.updates)

    def measure(self, stage: Stage, groups: Sequence[ScoredGroup], temperature: float) -> list[ScoredGroup]:
        """Return the groups with every measurement that the stage needs, and with its scorers' rewards."""
        measured = self.policy.annotate(groups, stage.needs - {"teacher_logprobs"}, temperature)
        if stage.name in self.teachers:
            measured = self.teachers[stage.name].annotate(measured, self.policy, temperature)
        for scorer in self.scorers[stage.name]:
            measured = scorer.score(measured, temperature)
        return measured

    def update(
        self,
        stage: Stage,
        groups: Sequence[ScoredGroup],
        credited: Sequence[tuple[Credited, ...]],
        *,
        seed: int,
        temperature: float,
    ) -> dict[str, float]:
        """Train the policy on credited groups, then the stage's scorers; return metrics."""
        stats = self.policy.update(
            make_batch(groups, credited),
            stage.objective,
            epochs=stage.epochs,
            minibatches=stage.minibatches,
            seed=seed,
            temperature=temperature,
        )
        metrics = {f"learner/{name}": value for name, value in stats.items()}
        for scorer in self.scorers[stage.name]:
            metrics |= scorer.learn(groups, temperature)
        return metrics

    def beside(self, stage: Stage) -> dict[str, Learner]:
        """Return the scorers' learners, by the names under which checkpoints keep them."""
        return {
            f"{stage.name}-{place}": scorer.learner for place, scorer in enumerate(self.scorers[stage.name])
        }


@dataclass(slots=True)
class Run:
    """A run in progress: what is open, and the next update to make."""

    recipe: Recipe
    ground: Playground
    engine: Engine
    learners: Learners
    tokenizer: PreTrainedTokenizerFast
    log: MetricsLog
    reporter: Reporter
    update: int
    """The next update to make."""
    samplers: dict[str, Mapping[str, Json]]
    """For each stage, by name, the state of its sampler after the last update that was learned from."""
    transforms: dict[str, Sequence[Mapping[str, Json]]]
    """For each stage, by name, the states of the transforms that keep one, after that same update."""
    records: list[dict[str, Any]] = field(init=False)  # Any: the stage's name beside the numbers
    """Metrics of the updates so far, one record per update, with the name of its stage."""
    alarms: list[str] = field(default_factory=list)
    """Warnings about the last update from the monitors that may stop the run."""

    def __post_init__(self) -> None:
        self.records = self.log.records()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.ground.folder

    @property
    def host(self) -> Host:
        """Where episodes are played."""
        return self.ground.host

    def record(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Write an update's numbers to the log and report them; let the monitors look at them."""
        records = [record for record in self.records if record["stage"] == stage]
        warnings = {monitor.name: monitor([*records, values]) for monitor in self.recipe.monitors}
        values = {**values, **{f"monitor/{name}": 1.0 for name, warning in warnings.items() if warning}}
        self.log.write(update, stage, values)
        self.reporter.update(update, stage, values)
        for name, warning in warnings.items():
            if warning and not (records and records[-1].get(f"monitor/{name}")):
                self.reporter.say(f"update {update + 1}: {warning}")
        self.records.append({"stage": stage, **values})
        self.alarms = [
            warnings[monitor.name]
            for monitor in self.recipe.monitors
            if monitor.stop and warnings[monitor.name]
        ]

    def stop_if_alarmed(self) -> None:
        """End the run if a monitor that may stop it has warned.

        Raises:
            Collapsed: such a monitor has warned; the message holds its warning.
        """
        if self.alarms:
            raise Collapsed(
                f"update {self.update}: {'; '.join(self.alarms)}. The run is committed up to here; fix the "
                "recipe "
                "and give another --out"
            )

    def commit(self, update: int) -> None:
        """Make everything up to and including ``update`` permanent, if a checkpoint is due."""
        self.update = update + 1
        stage, local = self.recipe.stage_at(update)
        every, keep = self.recipe.checkpoints.every, self.recipe.checkpoints.keep
        if self.update % every and self.update < self.recipe.updates and local + 1 < stage.updates:
            return
        state: dict[str, Json] = {
            "update": self.update,
            "samplers": {name: dict(kept) for name, kept in self.samplers.items()},
            "transforms": {name: list(kept) for name, kept in self.transforms.items()},
            "regularisers": [dict(regulariser.state_dict()) for regulariser in stage.objective.remembering],
        }
        self.log.sync()
        checkpoints = self.folder / "checkpoints"
        beside = self.learners.beside(stage)
        checkpoint.save(
            checkpoints / f"{self.update:06d}", self.learners.policy, self.tokenizer, state, beside
        )
        checkpoint.tidy(checkpoints, keep)


@asynccontextmanager
async def open_run(
    recipe: Recipe,
    folder: Path,
    reporter: Reporter | None = None,
    origin: Origin | None = None,
    make: MakeLearner = make_learner,
) -> AsyncIterator[Run]:
    """Open ``folder`` for ``recipe``: a new run, or an earlier one, continued from its newest checkpoint.

    ``origin`` is kept in a new folder, which then needs no recipe file; ``make`` builds everything that
    learns.

    Raises:
        ConfigError: the folder is in use or belongs to another recipe, or a part of the recipe cannot be
        opened.
    """
    reporter = reporter or Reporter()
    # samplers and transforms that learn are part of the recipe: two runs of one recipe must not share them
    recipe = replace(recipe, stages=copy.deepcopy(recipe.stages))
    for sink in recipe.sinks:
        sink.check()
    with claimed(folder, describe(recipe)) as new:
        if new and origin is not None:
            origin.keep(folder)
        tasks = await _tasks(recipe, folder, reporter)
        async with AsyncExitStack() as stack:
            host = await stack.enter_async_context(_host(recipe))
            tokenizer = await _tokenizer(recipe, folder, host)
            renderer = recipe.renderer(tokenizer)
            learners = _learners(recipe, len(tokenizer), renderer, make)
            update, samplers = _restore(recipe, folder / "checkpoints", learners, reporter)
            engine = await stack.enter_async_context(_engine(recipe, len(tokenizer), renderer))
            await engine.load(learners.policy.weights(), version=update)
            log = stack.enter_context(MetricsLog(folder, recipe.sinks))
            log.drop_after(update - 1)
            drop_trajectories_after(folder, update - 1)
            ground = Playground(
                agent=engine,
                agent_at=lambda temperature: engine.using(replace(recipe.sampling, temperature=temperature)),
                host=host,
                renderer=renderer,
                tasks=tasks,
                limits=_limits(recipe),
                seed=recipe.seed,
                folder=folder,
                on_end=reporter.episode,
            )
            yield Run(
                recipe,
                ground,
                engine,
                learners,
                tokenizer,
                log,
                reporter,
                update,
                samplers,
                _memories(recipe),
            )


def _memories(recipe: Recipe) -> dict[str, Sequence[Mapping[str, Json]]]:
    return {stage.name: stage.payment.memory() for stage in recipe.stages}


def _limits(recipe: Recipe) -> Limits:
    return recipe.limits.within(recipe.env.max_turns)


def _host(recipe: Recipe) -> AbstractAsyncContextManager[Host]:
    return open_host(
        recipe.env,
        num_workers=recipe.num_workers,
        deadline_s=recipe.limits.env_deadline_s,
        sandboxes=recipe.sandboxes,
    )


def _engine(recipe: Recipe, vocab_size: int, renderer: Renderer) -> AbstractAsyncContextManager[Engine]:
    return recipe.engine.open(
        recipe.model,
        vocab_size=vocab_size,
        renderer=renderer,
        sampling=recipe.sampling,
        device=recipe.compute.device,
    )


async def _tasks(recipe: Recipe, folder: Path, reporter: Reporter) -> Mapping[str, Sequence[Task]]:
    """Return the tasks of each split that can be played here.

    A new run writes the manifest; a resumed one compares it with the folder's.
    """
    recipe.env.prepare(reporter.progress)
    panels = check_panels(recipe)
    use_threads(recipe.compute.threads)
    splits = {split: recipe.env.tasks(split) for split in panels}
    found = await playable(splits, recipe.sandboxes, reporter.say)
    recipe.panel(found.tasks[recipe.evaluation.split])  # refused now rather than after the first stage
    manifest = make_manifest(seed=recipe.seed, panels=panels, missing=found.missing)
    for warning in reconcile(folder / "manifest.json", manifest):
        reporter.say(f"resumed under other conditions, so numbers may differ in their last digits: {warning}")
    return found.tasks


def _learners(recipe: Recipe, vocab_size: int, renderer: Renderer, make: MakeLearner) -> Learners:
    """Build the policy's learner, and for each stage its scorers and its teacher."""
    model, compute = recipe.model, recipe.compute
    scorer_seed = seed_of(recipe.seed, "scorer")
    policy = make(
        model,
        compute,
        vocab_size=vocab_size,
        renderer=renderer,
        seed=seed_of(recipe.seed, "model"),
        value_head=any("values" in stage.needs for stage in recipe.stages),
    )
    scorers = {
        stage.name: tuple(
            scorer.open(make, model, compute, vocab_size=vocab_size, renderer=renderer, seed=scorer_seed)
            for scorer in stage.scorers
        )
        for stage in recipe.stages
    }
    teachers = {
        stage.name: open_teacher(stage.teacher, make, compute, vocab_size=vocab_size, renderer=renderer)
        for stage in recipe.stages
        if stage.teacher is not None and "teacher_logprobs" in stage.needs
    }
    return Learners(policy, scorers, teachers)


def _restore(
    recipe: Recipe, checkpoints: Path, learners: Learners, reporter: Reporter
) -> tuple[int, dict[str, Mapping[str, Json]]]:
    """Load the newest whole checkpoint, if there is one; return the next update and the samplers' states."""
    checkpoint.tidy(checkpoints, recipe.checkpoints.keep)
    newest = checkpoint.newest(checkpoints, reporter.say)
    if newest is None:
        return 0, {}
    update = int(newest.name)
    stage, _ = recipe.stage_at(update - 1)
    learners.start(stage)
    state: Any = checkpoint.restore(
        newest, learners.policy, learners.beside(stage)
    )  # Any: as ``commit`` wrote it
    for regulariser, kept in zip(stage.objective.remembering, state["regularisers"], strict=True):
        regulariser.load_state_dict(kept)
    for stage in recipe.stages:
        if stage.source.sampler is not None and stage.name in state["samplers"]:
            stage.source.sampler.load_state_dict(state["samplers"][stage.name])
        stage.payment.recall(state["transforms"][stage.name])
    reporter.say(f"resumed {checkpoints.parent} at update {update} of {recipe.updates}")
    return update, state["samplers"]


async def _tokenizer(recipe: Recipe, folder: Path, host: Host) -> PreTrainedTokenizerFast:
    """Load the run's tokenizer; a new run takes the recipe's, or trains one on play of the training tasks."""
    own = folder / "tokenizer"
    if own.exists():
        return load_tokenizer(own)
    spec = recipe.model.tokenizer
    if isinstance(spec, TrainedTokenizer):
        tokenizer = train_tokenizer(await _texts(recipe, host, spec.num_episodes), spec)
    else:
        tokenizer = load_tokenizer(spec or recipe.model.folder)
    fresh = folder / ".tokenizer"
    with checkpoint.saving(fresh):
        tokenizer.save_pretrained(fresh)
        fresh.rename(own)
    return load_tokenizer(own)


async def _texts(recipe: Recipe, host: Host, num_episodes: int) -> list[str]:
    """Return the texts of random play of training tasks, or of expert play if random play is impossible."""
    split = recipe.stages[0].source.split
    tasks = recipe.env.tasks(split)
    draws = [Draw(task, 1, 0) for task in tasks[:num_episodes]]
    seed = seed_of(recipe.seed, "tokenizer")
    for policy in (RandomPolicy(), ExpertPolicy()):
        played = await play_all(draws, policy=policy, host=host, seed=seed, limits=_limits(recipe))
        if played.groups:
            break
    else:
        raise ConfigError(
            f"a tokenizer is trained on play, and no episode of split {split!r} could be played, neither at "
            "random nor "
            f"by the expert: {played.failures[-1].error}; fix the environment, or give ModelSpec.tokenizer "
            "a folder"
        )
    turns = [turn for group in played.groups for trajectory in group for turn in trajectory.turns]
    return [
        text
        for turn in turns
        for text in (*(message.content for message in turn.observation.messages), turn.action.text)
    ]
