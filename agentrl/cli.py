"""The command line: its commands, their arguments, and how errors are reported.

What a command does is in ``agentrl.commands``. A user's mistake is reported as one message on standard error
with exit code 2, never as a traceback; a bug in agentrl keeps its traceback. Modules that take long to import
are imported only by the command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agentrl.errors import AgentRLError, ConfigError, boundary
from agentrl.plugins import extra_with


class _Commands(TyperGroup):
    """The group of all commands: those of this file in their order, then the commands of plug-ins.

    A plug-in registers a Typer app in the entry-point group ``agentrl.commands``. The app is imported only
    when its command is called or listed.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # Any: typer carries its own copy of click
        return [*self.commands, *sorted(_plugin_commands().keys() - self.commands.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands or cmd_name not in _plugin_commands():
            return super().get_command(ctx, cmd_name)
        entry = _plugin_commands()[cmd_name]
        with boundary(ConfigError, f"loading the command {cmd_name!r} ({entry.value})"):
            loaded = entry.load()
        if not isinstance(loaded, typer.Typer):
            raise ConfigError(
                f"the command {cmd_name!r} ({entry.value}) must be a typer.Typer; "
                f"found {type(loaded).__name__}"
            )
        return typer.main.get_group(loaded)

    def invoke(self, ctx: Any) -> Any:
        with _errors_as_messages():
            return super().invoke(ctx)


def _plugin_commands() -> dict[str, metadata.EntryPoint]:
    """Return the entry points of plug-in commands by name."""
    return {entry.name: entry for entry in metadata.entry_points(group="agentrl.commands")}


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """Turn an error that agentrl raises on purpose in the block into one message and an exit code."""
    try:
        yield
    except AgentRLError as problem:
        message = str(problem)
    except BaseExceptionGroup as several:  # raised by episodes that are played concurrently
        ours, others = several.split(AgentRLError)
        if ours is None or others is not None:
            raise
        message = str(next(_leaves(ours)))
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        extra = extra_with(metadata.distribution("agentrl"), package)
        if extra is None:
            raise
        message = (
            f"this needs the package {package!r}, which is not installed; "
            f"in agentrl's folder: pip install '.[{extra}]'"
        )
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"\n{stop.args[0] if stop.args else 'interrupted'}\n")
        raise typer.Exit(130) from None
    else:
        return
    sys.stderr.write(f"error: {message}\n")
    raise typer.Exit(2)


def _leaves(group: BaseExceptionGroup[AgentRLError]) -> Iterator[AgentRLError]:
    """Yield every error inside an exception group, also those inside nested groups."""
    for problem in group.exceptions:
        if isinstance(problem, BaseExceptionGroup):
            yield from _leaves(problem)
        else:
            yield problem


def _version(requested: bool) -> None:
    if requested:
        print(f"agentrl {metadata.version('agentrl')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Multi-turn reinforcement learning for language-model agents.",
)


def _option(help_text: str) -> Any:  # Any: typer's own types of options are private
    """Return a Typer option whose help shows no default, because ``help_text`` describes the default."""
    return typer.Option(help=help_text, show_default=False)


def _argument(help_text: str) -> Any:  # Any: as above
    """Return a Typer argument whose help shows no default, because ``help_text`` describes the default."""
    return typer.Argument(help=help_text, show_default=False)


Overrides = Annotated[list[str] | None, typer.Argument(metavar="PATH=VALUE", show_default=False)]
SandboxOption = Annotated[
    str | None,
    typer.Option(
        "--sandbox",
        metavar="NAME[,OPTION=VALUE...]",
        help="Where sandboxed tasks run; by default auto.",
        show_default=False,
    ),
]
Options = Annotated[list[str] | None, typer.Argument(metavar="OPTION=VALUE", show_default=False)]


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[Path, _argument("A recipe file, or a run folder to resume.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, _option("Run folder; by default runs/<name of the recipe>.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, print what it will need, and stop.")
    ] = False,
) -> None:
    """Run a recipe. The same command resumes a run that was stopped or killed.

    PATH=VALUE sets a field of the recipe, such as seed=1, stages.learn.updates=20, env.max_turns=15.
    """
    from agentrl.commands import train as command

    (command.dry_run if dry_run else command.run)(recipe, overrides or (), out)


@app.command("eval")
def evaluate(
    target: Annotated[
        str, _argument("A run folder or a checkpoint in it, a recipe file, or an environment.")
    ],
    options: Options = None,
    policy: Annotated[
        str | None,
        _option("random, expert, checkpoint:DIR or openai:MODEL@URL; by default a run's newest checkpoint."),
    ] = None,
    split: Annotated[str | None, _option("Split to play; by default the recipe's, or test.")] = None,
    tasks: Annotated[int | None, _option("Number of tasks, from the start of the panel; 0: all.")] = None,
    episodes: Annotated[int | None, _option("Episodes per task; pass@k is reported for more than 1.")] = None,
    temperature: Annotated[
        float | None, _option("Sampling temperature; by default the recipe's, or 0.")
    ] = None,
    max_tokens: Annotated[
        int | None, _option("Maximum tokens per action; by default the recipe's, or 64.")
    ] = None,
    seed: Annotated[int | None, _option("Seed; by default the one with which the recipe evaluates.")] = None,
    workers: Annotated[int | None, _option("Number of worker processes for environments that block.")] = None,
    device: Annotated[str | None, _option("Device on which a checkpoint runs: cpu, cuda.")] = None,
    sandbox: SandboxOption = None,
    out: Annotated[
        Path | None, _option("File for the report (JSON); trajectories are written beside it.")
    ] = None,
) -> None:
    """Measure a policy on a panel of tasks: success, return, turns, tokens and invalid actions.

    Means are given with 95% intervals.

    agentrl eval runs/demo evaluates the newest checkpoint of that run, with the settings of its recipe.
    OPTION=VALUE sets an option of the environment.
    """
    from agentrl.commands import evaluate as command

    request = command.EvaluationRequest(
        policy=policy,
        split=split,
        episodes=episodes,
        tasks=tasks,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        workers=workers,
        device=device,
        sandbox=sandbox,
        out=out,
    )
    command.run(target, options or (), request)


@app.command()
def compare(
    a: Annotated[Path, _argument("A report, or a run folder, whose last report is used.")],
    b: Annotated[Path, _argument("Another report or run folder, on the same tasks.")],
) -> None:
    """Compare two evaluations task by task, with a paired test."""
    from agentrl.commands import evaluate as command

    command.compare_reports(a, b)


@app.command()
def rescore(
    run: Annotated[Path, _argument("A run folder.")],
    like: Annotated[
        Path | None, _option("A recipe file or run folder whose rewards and credit are used.")
    ] = None,
    reward: Annotated[str | None, _option("Reward to use instead, as module:attribute.")] = None,
    transform: Annotated[
        list[str] | None, _option("Transform of the ledger to use instead; may be repeated.")
    ] = None,
    credit: Annotated[str | None, _option("Credit rule to use instead; the modifiers are left out.")] = None,
    stage: Annotated[str | None, _option("Only this stage.")] = None,
    out: Annotated[Path | None, _option("Folder to write the rescored trajectories to.")] = None,
) -> None:
    """Reward and credit a run's stored trajectories again, and show what changes.

    Plays nothing and needs no model.

    Without options the run is compared with itself: every difference must be 0.
    """
    from agentrl.commands import rescore as command

    request = command.RescoreRequest(
        like=like, reward=reward, transforms=transform or (), credit=credit, stage=stage, out=out
    )
    command.run(run, request)


@app.command()
def play(
    env: Annotated[str, _argument("An environment, a recipe file or a run folder.")],
    options: Options = None,
    split: Annotated[str, typer.Option(help="Split of the task.")] = "test",
    index: Annotated[int, typer.Option(help="Index of the task in its split, from 0.")] = 0,
    task: Annotated[str | None, _option("Id of the task, instead of split and index.")] = None,
    sandbox: SandboxOption = None,
) -> None:
    """Play an episode yourself, and see the signals of each turn and the reward it would get."""
    from agentrl.commands import play as command

    command.run(env, options or (), split=split, index=index, task=task, sandbox_text=sandbox)


@app.command("list")
def catalogue() -> None:
    """List the environments, sandboxes and recipes."""
    from agentrl.commands import inventory

    inventory.catalogue()


@app.command()
def info(
    env: Annotated[str, _argument("An environment's name, or module:attribute.")],
    options: Options = None,
) -> None:
    """Describe an environment: options, signals, splits and the content hashes of their tasks."""
    from agentrl.commands import inventory

    inventory.info(env, options or ())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str | None, _argument("A benchmark; without a name, all are listed.")] = None,
) -> None:
    """Run a benchmark of the source tree; the arguments after its name are passed to it."""
    from agentrl.commands import inventory

    raise typer.Exit(inventory.bench(name, context.args))


@app.command()
def new(
    kind: Annotated[str, _argument("What to create: env.")],
    name: Annotated[str, _argument("Lower-case words joined by '-'.")],
    folder: Annotated[Path, typer.Option(help="Folder in which the package is created.")] = Path(),
) -> None:
    """Create the package of a new environment, which passes the conformance suite as it is."""
    from agentrl.commands.scaffold import new_environment
    from agentrl.errors import ConfigError

    if kind != "env":
        raise ConfigError(f"agentrl new can create only an env; found {kind!r}. Write agentrl new env NAME")
    made = new_environment(name, folder)
    print(f"created {made}: read its README.md; check it with\n  cd {made} && python -m pytest")


@app.command()
def doctor() -> None:
    """Report what this machine lacks and how to fix it.

    The exit code is 1 if something that agentrl needs is missing.
    """
    from agentrl.commands import inventory

    if not inventory.doctor():
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()
