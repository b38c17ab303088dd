"""Training: one loop, in the order of the data.

```
episodes (play, pay, filter) -> learn (measure, credit, optimise) -> engine.load (new weights)
```

Every stage of a recipe goes through this loop, a warm start on demonstrations as well as reinforcement
learning. Training is synchronous if a stage's ``max_staleness`` is 0; otherwise ``episodes`` lets playing run
ahead of learning by up to that many updates.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from statistics import fmean

from agentrl.evaluation import evaluate
from agentrl.evaluation.report import Report
from agentrl.evaluation.reporter import Reporter
from agentrl.policy import Policy
from agentrl.recipe import Collected, Origin, Recipe, Stage
from agentrl.recipe.check import check
from agentrl.recipe.plan import check_plan
from agentrl.records.store import trajectory_path, write_trajectories
from agentrl.records.summary import summarise
from agentrl.run import Run, open_run
from agentrl.types import Credited, ScoredGroup, seed_of


async def train(
    recipe: Recipe, folder: Path, reporter: Reporter | None = None, origin: Origin | None = None
) -> Mapping[str, Report]:
    """Run ``recipe`` in ``folder`` to its end, and return its evaluations by name.

    A run that an earlier process left unfinished is resumed. ``origin`` is stored in a new folder, so that
    the command line can resume and evaluate the run without the recipe's file.

    Raises:
        ConfigError: the recipe cannot run as meant, or the folder belongs to another recipe; raised before
            any work.
        EnvError: every episode of an update failed.
        Collapsed: a monitor of the recipe stopped the run.
    """
    check(recipe)
    check_plan(recipe)
    async with open_run(recipe, folder, reporter, origin) as run, aclosing(episodes(run)) as played:
        for name, update in evaluations(recipe).items():
            if update >= run.update:  # written by a process that was killed before it committed the update
                report_path(folder, name).unlink(missing_ok=True)
        for name, policy in recipe.evaluation.baselines.items():
            await measure_policy(run, name, policy)
        async for update, collected in played:
            stage, local = recipe.stage_at(update)
            groups, credited, stats = await learn(run, update, collected)
            await run.engine.load(run.learners.policy.weights(), version=update + 1)
            write_trajectories(
                trajectory_path(folder, update),
                groups,
                credited,
                update=update,
                stage=stage.name,
                failures=collected.failures,
            )
            numbers = summarise(groups, failures=collected.failures, credited=credited, version=update)
            run.record(update, stage.name, stats | numbers | dict(run.host.metrics()))
            if due(stage, local):
                report = await measure_policy(
                    run, f"{stage.name}-{local + 1}", run.engine.using(recipe.evaluation.sampling)
                )
                run.log.write(update, stage.name, report.metrics())
            run.samplers[stage.name] = collected.sampler
            run.transforms[stage.name] = collected.transforms
            run.commit(update)
            run.stop_if_alarmed()
        return reports(recipe, folder)


async def episodes(run: Run) -> AsyncGenerator[tuple[int, Collected], None]:
    """Yield each update's number and groups, in order; play ahead as far as the stage's source allows.

    Updates are collected one after another. Collecting for update ``u`` begins when the engine has the
    weights that ``u - max_staleness`` updates have made, so with 0, playing waits for learning. A stage does
    not begin to play before the previous stage has ended.
    """
    playing = asyncio.Lock()
    ahead: deque[asyncio.Task[Collected]] = deque()

    async def collect(update: int) -> Collected:
        stage, local = run.recipe.stage_at(update)
        async with playing:
            payment, least = stage.payment, stage.credit.min_group
            collected = await stage.source.collect(
                run.ground, payment, name=stage.name, update=local, min_group=least
            )
            collected.transforms = payment.observe(collected.gauges)
            return collected

    try:
        for update in range(run.update, run.recipe.updates):
            stage, local = run.recipe.stage_at(update)
            until = update + min(stage.source.max_staleness, stage.updates - local - 1)
            for next_update in range(update + len(ahead), until + 1):
                ahead.append(asyncio.create_task(collect(next_update)))
            yield update, await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


async def learn(
    run: Run, update: int, collected: Collected
) -> tuple[list[ScoredGroup], list[tuple[Credited, ...]], dict[str, float]]:
    """Make one update: measure, credit, optimise; return the measured groups, their credit, and metrics.

    If the filters kept no group, the weights stay as they are.
    """
    stage, local = run.recipe.stage_at(update)
    counted = (
        {name: fmean(values) for name, values in collected.gauges.items()}
        | collected.counts
        | {"filter/dropped": float(collected.num_dropped)}
    )

    def compute() -> tuple[list[ScoredGroup], list[tuple[Credited, ...]], dict[str, float]]:
        if local == 0:
            run.learners.start(stage)
        if not collected.groups:
            return [], [], counted
        temperature = run.recipe.sampling.temperature
        groups = run.learners.measure(stage, collected.groups, temperature)
        credited = stage.credit(groups)
        for modify in stage.modifiers:
            credited = modify(groups, credited)
        seed = seed_of(run.recipe.seed, "minibatches", update)
        metrics = run.learners.update(stage, groups, credited, seed=seed, temperature=temperature)
        return groups, credited, metrics | counted

    if stage.source.max_staleness:
        return await asyncio.to_thread(compute)  # episodes continue in this thread meanwhile
    return compute()


def due(stage: Stage, local: int) -> bool:
    """Return whether the agent is evaluated after update ``local`` of the stage, counted from 0."""
    last = local + 1 == stage.updates
    return (stage.evaluate and last) or bool(stage.evaluate_every and (local + 1) % stage.evaluate_every == 0)


def reports(recipe: Recipe, folder: Path) -> dict[str, Report]:
    """Return a run's evaluations by name: the baselines, then those of the agent in order of time."""
    paths = {name: report_path(folder, name) for name in [*recipe.evaluation.baselines, *evaluations(recipe)]}
    return {name: Report.read(path) for name, path in paths.items() if path.exists()}


def evaluations(recipe: Recipe) -> dict[str, int]:
    """Return, by name, the update after which each evaluation of the agent is made."""
    places = [recipe.stage_at(update) for update in range(recipe.updates)]
    return {
        f"{stage.name}-{local + 1}": update
        for update, (stage, local) in enumerate(places)
        if due(stage, local)
    }


def report_path(folder: Path, name: str) -> Path:
    """Return the file in which a run keeps the report of an evaluation."""
    return folder / "evaluations" / f"{name}.json"


async def measure_policy(run: Run, name: str, policy: Policy) -> Report:
    """Evaluate ``policy`` on the recipe's panel and store the report, or return the report already stored."""
    path = report_path(run.folder, name)
    if path.exists():
        return Report.read(path)
    settings = run.recipe.evaluation
    report = await evaluate(
        policy,
        run.host,
        run.recipe.panel(run.ground.tasks[settings.split]),
        episodes_per_task=settings.episodes_per_task,
        seed=seed_of(run.recipe.seed, "evaluate"),
        limits=run.ground.limits,
        name=name,
        settings={"split": settings.split, "temperature": settings.sampling.temperature},
        on_end=run.reporter.episode,
        store=path.with_suffix(".parquet"),
    )
    report.write(path)
    run.reporter.report(report)
    return report
