"""Inputs of the package's game makers: options, and a knowledge base that is parsed only once."""

from __future__ import annotations

import functools

import textworld
from textworld.generator.data import KnowledgeBase

_load = KnowledgeBase.load.__func__


@functools.cache
def knowledge(*args: str, **kwargs: str) -> KnowledgeBase:
    """Return the knowledge base of a folder; each folder is parsed only once per process."""
    return _load(KnowledgeBase, *args, **kwargs)


def options_of(seed: int, *, only_last_action: bool = True) -> textworld.GameOptions:
    """Return new options for a game. Each game needs an object of its own, because makers modify it."""
    options = textworld.GameOptions()
    options.seeds = seed
    options.grammar.only_last_action = only_last_action
    return options
