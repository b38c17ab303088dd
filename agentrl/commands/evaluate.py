"""``agentrl eval`` measures any policy on a panel of tasks; ``agentrl compare`` compares two evaluations."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.commands.reporter import ConsoleReporter
from agentrl.commands.tables import comparison_table, results_table, show
from agentrl.commands.targets import Target, find_target, newest_checkpoint, run_of, sandbox
from agentrl.engines.openai import OpenAIPolicy
from agentrl.env import EnvSpec
from agentrl.errors import ConfigError
from agentrl.evaluation import evaluate
from agentrl.evaluation.report import Report, compare
from agentrl.hosts import open_host
from agentrl.hosts.images import playable
from agentrl.options import describe
from agentrl.plugins import sandboxes_for
from agentrl.policy import ExpertPolicy, Policy, RandomPolicy, Sampling
from agentrl.records.folder import changes
from agentrl.rollout import Limits
from agentrl.sandbox import SandboxProvider
from agentrl.types import End, Trajectory, seed_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """The options of ``agentrl eval``. For an option that is ``None``, the recipe or a default decides."""

    policy: str | None = None
    split: str | None = None
    episodes: int | None = None
    tasks: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    workers: int | None = None
    device: str | None = None
    sandbox: str | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of an evaluation, after options, recipe and defaults were combined."""

    env: EnvSpec
    policy: str
    split: str = "test"
    episodes: int = 1
    tasks: int = 0
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0, max_tokens=64))
    seed: int = 0
    workers: int = 1
    limits: Limits
    device: str = "cpu"
    sandboxes: SandboxProvider | None = None
    """Opens sandboxes; if it is ``None`` and a task needs a sandbox, the provider ``auto`` is used."""
    recipe_at: Path | None = None
    """The recipe file or run folder whose renderer and engine a checkpoint is played with."""


def run(target: str, options: Sequence[str], request: EvaluationRequest) -> None:
    """Evaluate, print the result, and write the report."""
    settings = resolve(find_target(target, options), request)
    out = request.out or _default_out(target, settings)
    with ConsoleReporter() as reporter:
        for line in changes_since_training(settings.recipe_at):
            reporter.say(f"the run's recipe no longer means what it meant when the run was trained: {line}")
        report = asyncio.run(measure(settings, out, reporter))
    show(results_table({report.name: report}, title=f"{target}: split {settings.split!r}"))
    for reason, count in list(report.reasons.items())[:3]:
        print(f"failed {count} times: {reason}")
    print(f"report  {out}")


def changes_since_training(recipe_at: Path | None) -> list[str]:
    """Return how a run's recipe differs from the one that the run recorded.

    The two differ if code that the recipe names has changed since. Each line is one difference; at most five
    are returned. If ``recipe_at`` is a recipe file and not a run folder, the list is empty.
    """
    if recipe_at is None or not recipe_at.is_dir():
        return []
    from agentrl.recipe.load import load

    return changes(recipe_at / "recipe.json", describe(load(recipe_at)))[:5]


def resolve(target: Target, request: EvaluationRequest) -> Settings:
    """Return all settings; each is taken from the request, else from the recipe, else from the defaults.

    Raises:
        ConfigError: the request names no policy and the target has none, or a number is out of range.
    """
    policy = request.policy
    if policy is None or policy == "checkpoint":
        if target.checkpoint is None and (target.recipe_at is None or not target.recipe_at.is_dir()):
            raise ConfigError(
                "an evaluation needs a policy; "
                "give --policy random, expert, checkpoint:DIR or openai:MODEL@URL"
            )
        assert target.recipe_at is not None
        policy = f"checkpoint:{target.checkpoint or newest_checkpoint(target.recipe_at)}"
    kind, _, rest = policy.partition(":")
    recipe_at = target.recipe_at or (run_of(Path(rest)) if kind == "checkpoint" and rest else None)
    settings = Settings(env=target.env, policy=policy, limits=Limits(), recipe_at=recipe_at)
    if recipe_at is not None:
        settings = _with_recipe(settings, recipe_at)
    settings = dataclasses.replace(
        settings,
        **_given(request, "split", "episodes", "tasks", "seed", "workers", "device"),
        sandboxes=sandbox(request.sandbox) if request.sandbox else settings.sandboxes,
        sampling=dataclasses.replace(settings.sampling, **_given(request, "temperature", "max_tokens")),
    )
    for name, least in (("episodes", 1), ("tasks", 0), ("workers", 1)):
        if getattr(settings, name) < least:
            raise ConfigError(f"--{name} is {getattr(settings, name)}; it must be at least {least}")
    if settings.sampling.temperature < 0 or settings.sampling.max_tokens < 1:
        raise ConfigError("--temperature must not be negative and --max-tokens must be at least 1")
    if settings.split not in settings.env.splits:
        raise ConfigError(
            f"the environment has no split {settings.split!r}; it has {', '.join(settings.env.splits)}"
        )
    return settings


def _given(request: EvaluationRequest, *names: str) -> dict[str, Any]:  # Any: each value has its field's type
    """Return the options among ``names`` that were given on the command line, with their values."""
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _with_recipe(settings: Settings, recipe_at: Path) -> Settings:
    """Return ``settings`` with the values with which training with the recipe at ``recipe_at`` evaluates.

    The evaluation of a run's last checkpoint then gives exactly the numbers of the run's final table.
    """
    from agentrl.recipe.load import load

    recipe = load(recipe_at)
    return dataclasses.replace(
        settings,
        split=recipe.evaluation.split,
        episodes=recipe.evaluation.episodes_per_task,
        tasks=recipe.evaluation.num_tasks,
        sampling=recipe.evaluation.sampling,
        seed=seed_of(recipe.seed, "evaluate"),
        workers=recipe.num_workers,
        limits=recipe.limits,
        device=recipe.compute.device,
        sandboxes=recipe.sandboxes,
    )


async def measure(settings: Settings, out: Path, reporter: ConsoleReporter) -> Report:
    """Play the panel; write the report to ``out`` and the trajectories beside it, and return the report."""
    async with opened(settings) as policy:
        settings.env.prepare(reporter.progress)
        tasks = settings.env.tasks(settings.split)[: settings.tasks or None]
        sandboxes = settings.sandboxes or sandboxes_for(tasks)
        found = await playable({settings.split: tasks}, sandboxes, reporter.say)
        tasks = found.tasks[settings.split]
        total, ended = len(tasks) * settings.episodes, 0

        def on_end(trajectory: Trajectory) -> None:
            nonlocal ended
            reporter.episode(trajectory)
            ended += trajectory.end is not End.FAILED
            reporter.progress("episodes", ended, total)

        hosting = open_host(
            settings.env,
            num_workers=settings.workers,
            deadline_s=settings.limits.env_deadline_s,
            sandboxes=sandboxes,
        )
        async with hosting as host:
            report = await evaluate(
                policy,
                host,
                tasks,
                episodes_per_task=settings.episodes,
                seed=settings.seed,
                limits=settings.limits.within(settings.env.max_turns),
                name=_name(settings.policy),
                settings={
                    "policy": settings.policy,
                    "split": settings.split,
                    "temperature": settings.sampling.temperature,
                    "max_tokens": settings.sampling.max_tokens,
                },
                on_end=on_end,
                store=out.with_suffix(".parquet"),
            )
    report.write(out)
    return report


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Policy]:
    """Open the policy that ``settings.policy`` names.

    Raises:
        ConfigError: ``settings.policy`` names no policy.
        CheckpointError: the checkpoint is missing or incomplete.
    """
    kind, _, rest = settings.policy.partition(":")
    simple: dict[str, Policy] = {"random": RandomPolicy(), "expert": ExpertPolicy()}
    if settings.policy in simple:
        yield simple[settings.policy]
    elif kind == "checkpoint" and rest:
        async with _checkpoint(settings, Path(rest)) as policy:
            yield policy
    elif kind == "openai" and "@" in rest:
        model, _, url = rest.rpartition("@")
        async with OpenAIPolicy(url, model, sampling=settings.sampling) as endpoint:
            yield endpoint
    else:
        raise ConfigError(
            f"no policy is named {settings.policy!r}; give random, expert, checkpoint:DIR or openai:MODEL@URL"
        )


@asynccontextmanager
async def _checkpoint(settings: Settings, folder: Path) -> AsyncIterator[Policy]:
    """Open an engine with weights from ``folder``: a checkpoint, a run (its newest), or a model folder."""
    from agentrl.engines.spec import TorchEngine
    from agentrl.learner.checkpoint import read_weights, verify
    from agentrl.learner.model import load_tokenizer
    from agentrl.learner.spec import ModelSpec
    from agentrl.recipe.load import load
    from agentrl.render.chat import ChatRenderer

    model = folder
    if not (folder / "config.json").is_file():  # a checkpoint or a run folder
        checkpoint = newest_checkpoint(folder) if (folder / "recipe.json").is_file() else folder
        verify(checkpoint)
        model = checkpoint / "model"
    recipe = load(settings.recipe_at) if settings.recipe_at else None
    tokenizer = load_tokenizer(model)
    renderer = recipe.renderer(tokenizer) if recipe else ChatRenderer(tokenizer)
    engine = recipe.engine if recipe else TorchEngine(num_slots=2 * settings.limits.concurrency)
    opening = engine.open(
        ModelSpec(folder=str(model)),
        vocab_size=len(tokenizer),
        renderer=renderer,
        sampling=settings.sampling,
        device=settings.device,
    )
    async with opening as policy:
        await policy.load(
            read_weights(model), version=int(model.parent.name) if model.parent.name.isdigit() else 0
        )
        yield policy


def _name(policy: str) -> str:
    """Return a short name of a policy, for tables and file names.

    >>> _name("checkpoint:runs/demo/checkpoints/000076"), _name("openai:Qwen/Qwen3-8B@http://localhost:8000/v1")
    ('000076', 'Qwen3-8B')
    >>> _name("random")
    'random'
    """
    kind, _, rest = policy.partition(":")
    return Path(rest.rpartition("@")[0] if kind == "openai" else rest).name or kind


def _default_out(target: str, settings: Settings) -> Path:
    """Return the default path of the report: in the run folder if there is one, else in ``./evaluations``."""
    name = f"{_name(settings.policy)}-{settings.split}"
    path = Path(target)
    run = run_of(path) if path.is_dir() else None
    folder, name = (
        (Path("evaluations"), f"{path.stem}-{name}") if run is None else (run / "evaluations", f"eval-{name}")
    )
    return folder / (re.sub(r"[^\w.-]+", "-", name) + ".json")


def compare_reports(a: Path, b: Path) -> None:
    """Compare two reports, or the last reports of two runs, task by task, and print the result."""
    show(comparison_table(compare(_report(a), _report(b))))


def _report(path: Path) -> Report:
    """Return the report at ``path``, or, if that is a run folder, its last report, named after the folder."""
    if not path.is_dir():
        return Report.read(path)
    results = path / "results.json"
    if not results.is_file():
        known = sorted(str(file) for file in (path / "evaluations").glob("*.json"))
        raise ConfigError(
            f"the folder {path} holds no results, which a run writes when it has ended; give a report"
            + (f", such as {known[-1]}" if known else " that agentrl eval wrote")
        )
    last = list(json.loads(results.read_text()).values())[-1]
    return dataclasses.replace(Report.read(path / last["report"]), name=str(path))
