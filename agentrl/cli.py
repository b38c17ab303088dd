"""The command line: what can be said, and what becomes of errors. What a command does is in ``agentrl.commands``.

A mistake of the user is one message on standard error and exit code 2, never a traceback; an error of ours keeps its traceback. Modules
that take long to import are imported by the command that needs them.
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
    """The commands, in the order of this file; then those that plug-ins bring: Typer apps of the entry-point group ``agentrl.commands``.

    A plug-in's app is imported when it is called, or listed.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # Any: typer carries its own copy of click
        return [*self.commands, *sorted(_brought().keys() - self.commands.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands or cmd_name not in _brought():
            return super().get_command(ctx, cmd_name)
        entry = _brought()[cmd_name]
        with boundary(ConfigError, f"loading the command {cmd_name!r} ({entry.value})"):
            brought = entry.load()
        if not isinstance(brought, typer.Typer):
            raise ConfigError(
                f"the command {cmd_name!r} ({entry.value}) must be a typer.Typer, found {type(brought).__name__}"
            )
        return typer.main.get_group(brought)

    def invoke(self, ctx: Any) -> Any:
        with _said():
            return super().invoke(ctx)


def _brought() -> dict[str, metadata.EntryPoint]:
    """Return the commands of plug-ins by name."""
    return {entry.name: entry for entry in metadata.entry_points(group="agentrl.commands")}


@contextmanager
def _said() -> Iterator[None]:
    """Turn errors on purpose into a message and an exit code."""
    try:
        yield
    except AgentRLError as problem:
        message = str(problem)
    except BaseExceptionGroup as several:  # of episodes that are played side by side
        ours, others = several.split(AgentRLError)
        if ours is None or others is not None:
            raise
        message = str(next(_leaves(ours)))
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        extra = extra_with(metadata.distribution("agentrl"), package)
        if extra is None:
            raise
        message = f"this needs the package {package!r}, which is not installed; in agentrl's folder: pip install '.[{extra}]'"
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"\n{stop.args[0] if stop.args else 'interrupted'}\n")
        raise typer.Exit(130) from None
    else:
        return
    sys.stderr.write(f"error: {message}\n")
    raise typer.Exit(2)


def _leaves(group: BaseExceptionGroup[AgentRLError]) -> Iterator[AgentRLError]:
    for problem in group.exceptions:
        if isinstance(problem, BaseExceptionGroup):
            yield from _leaves(problem)
        else:
            yield problem


def _version(asked: bool) -> None:
    if asked:
        print(f"agentrl {metadata.version('agentrl')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Multi-turn reinforcement learning for language-model agents.",
)
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
    recipe: Annotated[
        Path, typer.Argument(help="A recipe file; or a run folder, to go on with it.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; by default runs/<name of the recipe>.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and print what it will take; do nothing else.")
    ] = False,
) -> None:
    """Run a recipe. A run that was stopped or killed goes on with the same command.

    PATH=VALUE sets a field of the recipe, such as seed=1, stages.learn.updates=20, env.max_turns=15.
    """
    from agentrl.commands import train as command

    (command.dry_run if dry_run else command.run)(recipe, overrides or (), out)


@app.command("eval")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A run folder or a checkpoint in it, a recipe file, or an environment.", show_default=False
        ),
    ],
    options: Options = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="random, expert, checkpoint:DIR or openai:MODEL@URL; for a run its newest checkpoint.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to play; by default the recipe's, or test.", show_default=False)
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="Tasks from the panel's start; 0: all.", show_default=False)
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes of each task; more than 1 give pass@k.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="By default the recipe's, or 0.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an action; the recipe's, or 64.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="By default as the recipe evaluates.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes of environments that block.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where a checkpoint computes: cpu, cuda.", show_default=False)
    ] = None,
    sandbox: SandboxOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Report to write (JSON; trajectories beside it).", show_default=False)
    ] = None,
) -> None:
    """Measure a policy on a panel of tasks: success, return, turns, tokens, invalid actions, with 95% intervals.

    agentrl eval runs/demo evaluates a run's newest checkpoint as its recipe does. OPTION=VALUE sets an option of the environment.
    """
    from agentrl.commands import evaluate as command

    asked = command.Asked(
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
    command.run(target, options or (), asked)


@app.command()
def compare(
    a: Annotated[
        Path, typer.Argument(help="A report, or a run folder (its last report).", show_default=False)
    ],
    b: Annotated[Path, typer.Argument(help="Another one on the same tasks.", show_default=False)],
) -> None:
    """Compare two evaluations task by task, with a paired test."""
    from agentrl.commands import evaluate as command

    command.contrast(a, b)


@app.command()
def rescore(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    like: Annotated[
        Path | None,
        typer.Option(help="A recipe file or run whose rewards and credit to use.", show_default=False),
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward to pay instead, as module:attribute.", show_default=False)
    ] = None,
    transform: Annotated[
        list[str] | None, typer.Option(help="Transform of the ledger; may be repeated.", show_default=False)
    ] = None,
    credit: Annotated[
        str | None, typer.Option(help="Credit rule to use instead, without modifiers.", show_default=False)
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the rescored trajectories to.", show_default=False)
    ] = None,
) -> None:
    """Pay and credit a run's stored trajectories again, and show what is different. Plays nothing and needs no model.

    Without options a run is held against itself: every difference must be 0.
    """
    from agentrl.commands import rescore as command

    asked = command.Asked(
        like=like, reward=reward, transforms=transform or (), credit=credit, stage=stage, out=out
    )
    command.run(run, asked)


@app.command()
def play(
    env: Annotated[
        str, typer.Argument(help="An environment, a recipe file or a run folder.", show_default=False)
    ],
    options: Options = None,
    split: Annotated[str, typer.Option(help="Split of the task.")] = "test",
    index: Annotated[int, typer.Option(help="Place of the task in its split, from 0.")] = 0,
    task: Annotated[
        str | None, typer.Option(help="Id of the task, instead of split and index.", show_default=False)
    ] = None,
    sandbox: SandboxOption = None,
) -> None:
    """Play an episode yourself, and see what each turn measures and would be paid."""
    from agentrl.commands import play as command

    command.run(env, options or (), split=split, index=index, task=task, given=sandbox)


@app.command("list")
def catalogue() -> None:
    """List the environments, sandboxes and recipes."""
    from agentrl.commands import look

    look.catalogue()


@app.command()
def info(
    env: Annotated[
        str, typer.Argument(help="An environment's name, or module:attribute.", show_default=False)
    ],
    options: Options = None,
) -> None:
    """Describe an environment: options, signals, splits and the content hashes of their tasks."""
    from agentrl.commands import look

    look.info(env, options or ())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="A benchmark; without one they are listed.", show_default=False)
    ] = None,
) -> None:
    """Run a benchmark of the source tree; what follows its name goes to it."""
    from agentrl.commands import look

    raise typer.Exit(look.bench(name, context.args))


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="What to make: env.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Lower-case words joined by '-'.", show_default=False)],
    folder: Annotated[Path, typer.Option(help="Folder to make it in.")] = Path(),
) -> None:
    """Write the package of a new environment, which keeps the contract from the first minute."""
    from agentrl.commands.scaffold import new_environment
    from agentrl.errors import ConfigError

    if kind != "env":
        raise ConfigError(f"agentrl can make: env; found {kind!r}. Write agentrl new env NAME")
    made = new_environment(name, folder)
    print(f"made {made}: read its README.md; check it with\n  cd {made} && python -m pytest")


@app.command()
def doctor() -> None:
    """Say what this machine lacks, and how to mend it; exit code 1 where something is missing that agentrl needs."""
    from agentrl.commands import look

    if not look.doctor():
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()
