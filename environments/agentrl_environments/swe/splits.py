"""The split that an instance belongs to. Only its repository and its broken function determine the split."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agentrl_environments.swe.rows import Instance

SHARES: Mapping[str, range] = {"train": range(800), "valid": range(800, 850), "test": range(850, 1000)}
"""Values of ``Instance.split_key`` (a hash from 0 to 999) that belong to each split."""
HELD_OUT = ("xmltodict", "toolz")
"""Repositories that are not trained on, unless the environment is configured otherwise."""


def split_of(instance: Instance, held_out: Collection[str] = HELD_OUT) -> str:
    """Return the name of an instance's split; ``held_out`` are the repositories of the split ``held-out``."""
    if instance.repo in held_out:
        return "held-out"
    return next(split for split, share in SHARES.items() if instance.split_key in share)
