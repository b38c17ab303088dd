"""``agentrl images``: build, list and remove root file systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from agentrl_sandboxes import images as store

images = typer.Typer(no_args_is_help=True, help="Root file systems of sandboxes, built without a registry.")
"""The command ``agentrl images``, registered in the entry-point group ``agentrl.commands``."""


@images.command()
def build(
    name: Annotated[str, typer.Argument(help="the image's name")] = store.BASE,
    package: Annotated[
        list[str] | None,
        typer.Option(help="a Debian package in addition to those of the base image; may be repeated"),
    ] = None,
    add: Annotated[
        list[Path] | None, typer.Option(help="a tar archive to unpack over it; may be repeated")
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            help="host: this host's own packages; debian: those of a mirror; "
            "or the tar archive of a root file system"
        ),
    ] = "host",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="build it again even if it exists")] = False,
) -> None:
    """Build an image, by default the base image.

    An image that was built from the same ingredients is kept.
    """
    origin = source if source in {"host", "debian"} else Path(source)
    made = store.build(name, packages=package or (), layers=add or (), source=origin, rebuild=rebuild)
    size = f"{made.num_files} files, {made.num_bytes / 2**20:.0f} MiB"
    typer.echo(f"{made.name} {made.digest}: {size} in {made.rootfs}")


@images.command("list")
def show() -> None:
    """List the images of this user."""
    table = Table("name", "digest", "files", "MiB", "source", "packages", "layers")
    for image in store.known():
        size = f"{image.num_bytes / 2**20:.0f}"
        table.add_row(
            image.name,
            image.digest[:12],
            str(image.num_files),
            size,
            image.source[:12],
            str(len(image.packages)),
            str(len(image.layers)),
        )
    Console().print(table)


@images.command()
def remove(name: Annotated[str, typer.Argument(help="the image's name")]) -> None:
    """Remove an image, which no sandbox may be using. Files that another image shares are kept."""
    store.remove(name)
    typer.echo(f"removed {name}")
