"""A run: what is held open while training, and the folder that remembers it.

```
runs/demo/
  recipe.json  manifest.json      what was run, on what
  recipe.py  overrides.json       the recipe's source, so that the folder alone is enough to go on or evaluate
  tokenizer/                      trained once, or copied
  demonstrations/<stage>.parquet  episodes that stages learn from again and again
  trajectories/update=000037/     every turn: text, tokens, log-probabilities, ledger, advantages
  metrics.jsonl  timing.jsonl     numbers that repeat exactly, and those that cannot
  tensorboard/
  evaluations/<name>.json         reports
  checkpoints/000038/             model (a Hugging Face folder), optimiser, value head, sampler state
```

**Exact resume.** The rename of a checkpoint commits all that came before it. Opening a folder again goes to the newest whole checkpoint,
drops whatever was written after it, and goes on: every seed is derived from the update's number, so on the CPU the numbers are those of a
run that was never killed.
"""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import json
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentrl import checkpoint
from agentrl.errors import CheckpointError, Collapsed, ConfigError
from agentrl.files import replace
from agentrl.images import playable
from agentrl.learner import Learner, use_threads
from agentrl.manifest import make_manifest, reconcile
from agentrl.metrics import MetricsLog
from agentrl.model import (
    FastTokenizer,
    TrainedTokenizer,
    build_model,
    load_tokenizer,
    model_config,
    train_tokenizer,
)
from agentrl.options import describe, differences
from agentrl.plan import check_plan
from agentrl.policy import Engine, ExpertPolicy, RandomPolicy
from agentrl.recipe import Origin, Recipe, Stage, check, check_panels
from agentrl.render import Renderer
from agentrl.rollout import Host, Limits, play_all
from agentrl.samplers import Draw
from agentrl.scorers import OpenScorer, Scorer
from agentrl.sources import Playground
from agentrl.store import drop_trajectories_after
from agentrl.tables import Reporter
from agentrl.teacher import OpenTeacher
from agentrl.types import Json, Remembering, Task, seed_of
from agentrl.workers import open_host


@dataclass(slots=True)
class Run:
    """A run in progress: open things, and the next update to make."""

    recipe: Recipe
    folder: Path
    host: Host
    engine: Engine
    learner: Learner
    tokenizer: FastTokenizer
    ground: Playground
    log: MetricsLog
    reporter: Reporter
    update: int
    records: list[dict[str, Any]]  # Any: the stage's name beside the numbers
    """Metrics of the updates so far."""
    alarms: list[str]
    """What monitors that may stop the run said of the last update."""
    scorers: Mapping[str, tuple[OpenScorer, ...]]
    """By stage: what learns beside the policy."""
    teachers: Mapping[str, OpenTeacher]
    """By stage: whose opinion is asked, where one is needed."""
    samplers: dict[str, Mapping[str, Json]]
    """By stage: the sampler's state after the last update that was learned from."""
    transforms: dict[str, Sequence[Mapping[str, Json]]]
    """By stage: the same of the transforms that remember."""

    def record(self, update: int, stage: str, values: Mapping[str, float]) -> None:
        """Write an update's numbers to the log and show them."""
        records = [record for record in self.records if record["stage"] == stage]
        told = {monitor.name: monitor([*records, values]) for monitor in self.recipe.monitors}
        values = {**values, **{f"monitor/{name}": 1.0 for name, wrong in told.items() if wrong}}
        self.log.write(update, stage, values)
        self.reporter.update(update, stage, values)
        for name, wrong in told.items():
            if wrong and not (records and records[-1].get(f"monitor/{name}")):
                self.reporter.say(f"update {update + 1}: {wrong}")
        self.records.append({"stage": stage, **values})
        self.alarms = [
            told[monitor.name] for monitor in self.recipe.monitors if monitor.stop and told[monitor.name]
        ]

    def stop_if_alarmed(self) -> None:
        """End the run where a monitor that may stop it sounds.

        Raises:
            Collapsed: what is wrong.
        """
        if self.alarms:
            raise Collapsed(
                f"update {self.update}: {'; '.join(self.alarms)}. The run is committed up to here; mend the recipe and give another --out"
            )

    def commit(self, update: int) -> None:
        """Make everything up to and with ``update`` permanent, where a checkpoint is due."""
        self.update = update + 1
        stage, local = self.recipe.stage_at(update)
        every = self.recipe.checkpoints.every
        if self.update % every and self.update < self.recipe.updates and local + 1 < stage.updates:
            return
        state: dict[str, Json] = {
            "update": self.update,
            "samplers": {name: dict(kept) for name, kept in self.samplers.items()},
            "transforms": {name: list(kept) for name, kept in self.transforms.items()},
            "regularisers": [dict(regulariser.state_dict()) for regulariser in _remembering(stage)],
        }
        self.log.sync()
        beside = _beside(stage, self.scorers)
        checkpoint.save(
            self.folder / "checkpoints" / f"{self.update:06d}", self.learner, self.tokenizer, state, beside
        )
        _tidy(self.folder / "checkpoints", self.recipe.checkpoints.keep)


@asynccontextmanager
async def open_run(
    recipe: Recipe, folder: Path, reporter: Reporter, origin: Origin | None = None
) -> AsyncIterator[Run]:
    """Open ``folder`` for ``recipe``: a new run, or the same one where it was left; ``origin`` is kept beside it.

    Raises:
        ConfigError: the recipe cannot run, the folder is in use, or it belongs to another recipe.
    """
    check(recipe)
    check_plan(recipe)
    recipe = dataclasses.replace(
        recipe, stages=copy.deepcopy(recipe.stages)
    )  # samplers that learn: two runs of a recipe share nothing
    for sink in recipe.sinks:
        sink.check()
    with _claimed(folder, recipe, origin):
        tasks = await _tasks(recipe, folder, reporter)
        limits = recipe.limits.within(recipe.env.max_turns)
        async with AsyncExitStack() as stack:
            host = await stack.enter_async_context(
                open_host(
                    recipe.env,
                    num_workers=recipe.num_workers,
                    deadline_s=limits.env_deadline_s,
                    sandboxes=recipe.sandboxes,
                )
            )
            tokenizer = await _tokenizer(recipe, folder, host, limits)
            renderer = recipe.renderer(tokenizer)
            learner = _learner(recipe, len(tokenizer), renderer)
            scorers = _scorers(recipe, len(tokenizer), renderer)
            update, samplers = _restore(recipe, folder / "checkpoints", learner, scorers, reporter)
            opening = recipe.engine.open(
                recipe.model,
                vocab_size=len(tokenizer),
                renderer=renderer,
                sampling=recipe.sampling,
                device=recipe.compute.device,
            )
            engine = await stack.enter_async_context(opening)
            await engine.load(learner.weights(), version=update)
            log = stack.enter_context(MetricsLog(folder, recipe.sinks))
            log.drop_after(update - 1)
            drop_trajectories_after(folder, update - 1)
            ground = Playground(
                agent=engine,
                at=lambda temperature: engine.using(
                    dataclasses.replace(recipe.sampling, temperature=temperature)
                ),
                host=host,
                renderer=renderer,
                tasks=lambda split: tasks[split],
                limits=limits,
                seed=recipe.seed,
                folder=folder,
                on_end=reporter.episode,
            )
            yield Run(
                recipe=recipe,
                folder=folder,
                host=host,
                engine=engine,
                learner=learner,
                tokenizer=tokenizer,
                ground=ground,
                log=log,
                reporter=reporter,
                update=update,
                records=log.records(),
                alarms=[],
                scorers=scorers,
                teachers=_teachers(recipe, len(tokenizer), renderer),
                samplers=samplers,
                transforms={stage.name: stage.payment.memory() for stage in recipe.stages},
            )


async def _tasks(recipe: Recipe, folder: Path, reporter: Reporter) -> Mapping[str, Sequence[Task]]:
    """Return the tasks of each split that can be played here, and write the manifest, or compare with the one that is there."""
    recipe.env.prepare(reporter.progress)
    panels = check_panels(recipe)
    use_threads(recipe.compute.threads)
    found = await playable(
        {split: recipe.env.tasks(split) for split in panels}, recipe.sandboxes, reporter.say
    )
    for warning in reconcile(
        folder / "manifest.json", make_manifest(seed=recipe.seed, panels=panels, missing=found.missing)
    ):
        reporter.say(f"resumed on another footing, so numbers may differ in their last digits: {warning}")
    return found.tasks


@contextmanager
def _claimed(folder: Path, recipe: Recipe, origin: Origin | None) -> Iterator[None]:
    """Hold the folder for this process, and make sure that it is this recipe's. Before the manifest is there, nothing is anybody's."""
    described = describe(recipe)
    recorded = folder / "recipe.json"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the run folder {folder} is a file; give another --out")
    if folder.exists() and any(folder.iterdir()) and not recorded.exists() and not (folder / "lock").exists():
        raise ConfigError(
            f"the folder {folder} exists and is no run of agentrl; give another --out, or empty it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise ConfigError(
                f"another process is using the run folder {folder}; wait for it, end it, or give another --out"
            ) from busy
        if recorded.exists() and (folder / "manifest.json").exists():
            changed = list(differences(json.loads(recorded.read_text()), json.loads(json.dumps(described))))
            if changed:
                raise CheckpointError(
                    f"the run in {folder} was started with another recipe:\n"
                    + "\n".join(f"  - {line}" for line in changed[:12])
                    + "\nstart it with the recipe it had, or give another --out"
                )
        else:
            replace(recorded, json.dumps(described, indent=1).encode())
            if origin is not None:
                origin.keep(folder)
        yield


def _learner(recipe: Recipe, vocab_size: int, renderer: Renderer) -> Learner:
    model = build_model(recipe.model, vocab_size, seed_of(recipe.seed, "model"), recipe.compute.device)
    return Learner(
        model,
        recipe.compute,
        value_head=any("values" in stage.needs for stage in recipe.stages),
        allowed_V=renderer.allowed(model.config.get_text_config().vocab_size),
    )


def _scorers(recipe: Recipe, vocab_size: int, renderer: Renderer) -> dict[str, tuple[OpenScorer, ...]]:
    """Build what learns beside the policy, stage by stage."""

    def opened(scorer: Scorer) -> OpenScorer:
        allowed_V = renderer.allowed(model_config(recipe.model, vocab_size).get_text_config().vocab_size)
        seed = seed_of(recipe.seed, "scorer")
        return scorer.open(
            recipe.model, vocab_size=vocab_size, compute=recipe.compute, allowed_V=allowed_V, seed=seed
        )

    return {stage.name: tuple(opened(scorer) for scorer in stage.scorers) for stage in recipe.stages}


def _teachers(recipe: Recipe, vocab_size: int, renderer: Renderer) -> dict[str, OpenTeacher]:
    return {
        stage.name: stage.teacher.open(vocab_size=vocab_size, compute=recipe.compute, renderer=renderer)
        for stage in recipe.stages
        if stage.teacher is not None and "teacher_logprobs" in stage.needs
    }


def _beside(stage: Stage, scorers: Mapping[str, Sequence[OpenScorer]]) -> dict[str, Learner]:
    """Return what is kept of a stage's scorers, by the name it has in a checkpoint."""
    return {f"{stage.name}-{place}": scorer.learner for place, scorer in enumerate(scorers[stage.name])}


def _remembering(stage: Stage) -> list[Remembering]:
    return [
        regulariser for regulariser in stage.objective.regularisers if isinstance(regulariser, Remembering)
    ]


def _restore(
    recipe: Recipe,
    checkpoints: Path,
    learner: Learner,
    scorers: Mapping[str, tuple[OpenScorer, ...]],
    reporter: Reporter,
) -> tuple[int, dict[str, Mapping[str, Json]]]:
    """Load the newest whole checkpoint, set aside what is newer and torn; return the next update and the samplers' states."""
    _tidy(checkpoints, recipe.checkpoints.keep)
    found = sorted(checkpoints.glob("[0-9]*"), reverse=True)
    for place, path in enumerate(found):
        try:
            checkpoint.verify(path)
        except CheckpointError as torn:
            if path == found[-1]:
                raise
            reporter.say(f"going on from an earlier checkpoint: {torn}")
            continue
        for newer in found[:place]:
            aside = checkpoints / f"torn-{newer.name}"
            shutil.rmtree(aside, ignore_errors=True)
            newer.rename(aside)
        update = int(path.name)
        stage, _ = recipe.stage_at(update - 1)
        learner.start(stage.optimisation, stage.updates)
        for scorer in scorers[stage.name]:
            scorer.start(learner.weights(), stage.updates)
        state = cast("Mapping[str, Any]", checkpoint.load(path, learner, _beside(stage, scorers)))
        for regulariser, kept in zip(_remembering(stage), state["regularisers"], strict=True):
            regulariser.load_state_dict(kept)
        for stage in recipe.stages:
            sampler = getattr(stage.source, "sampler", None)
            if sampler is not None and stage.name in state["samplers"]:
                sampler.load_state_dict(state["samplers"][stage.name])
            stage.payment.recall(state["transforms"][stage.name])
        reporter.say(f"resumed {checkpoints.parent} at update {update} of {recipe.updates}")
        return update, state["samplers"]
    return 0, {}


def _tidy(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest, and what a killed process left half written or half removed."""
    for old in sorted(checkpoints.glob("[0-9]*"))[:-keep]:
        old.rename(checkpoints / f".{old.name}.old")  # first out of sight: a removal is not atomic
    for left in checkpoints.glob(".[0-9]*"):
        shutil.rmtree(left)


async def _tokenizer(recipe: Recipe, folder: Path, host: Host, limits: Limits) -> FastTokenizer:
    """Load the run's tokenizer; where there is none yet, take the recipe's or train one on play of the training tasks."""
    own = folder / "tokenizer"
    if own.exists():
        return load_tokenizer(own)
    spec = recipe.model.tokenizer
    if isinstance(spec, TrainedTokenizer):
        tokenizer = train_tokenizer(await _texts(recipe, host, limits, spec.num_episodes), spec)
    else:
        tokenizer = load_tokenizer(spec or recipe.model.folder)
    fresh = folder / ".tokenizer"
    with checkpoint.saving(fresh):
        tokenizer.save_pretrained(fresh)
        fresh.rename(own)
    return load_tokenizer(own)


async def _texts(recipe: Recipe, host: Host, limits: Limits, num_episodes: int) -> list[str]:
    """Return what is said in random play (in expert play, where random is not possible) of training tasks."""
    split = recipe.stages[0].source.split
    tasks = recipe.env.tasks(split)
    draws = [Draw(task, 1, 0) for task in tasks[:num_episodes]]
    for policy in (RandomPolicy(), ExpertPolicy()):
        played = await play_all(
            draws, policy=policy, host=host, seed=seed_of(recipe.seed, "tokenizer"), limits=limits
        )
        if played.groups:
            break
    else:
        raise ConfigError(
            f"a tokenizer is trained on play, and no episode of split {split!r} could be played, neither at random nor by the expert: "
            f"{played.failures[-1].error}; mend the environment, or give ModelSpec.tokenizer a folder"
        )
    turns = [turn for group in played.groups for trajectory in group for turn in trajectory.turns]
    return [
        text
        for turn in turns
        for text in (*(message.content for message in turn.observation.messages), turn.action.text)
    ]
