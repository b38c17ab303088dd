"""Generates and compiles games, in a separate process under ``PYTHONHASHSEED=0``.

The fixed hash seed makes sure that a seed always gives the same game.

``python -m agentrl_environments.textworld.generate`` reads one JSON job per line and answers each with one
JSON line:

```
{"make": "coin-r8-q4", "base": 0, "seeds": [0, 1], "into": "/folder"}
    ->  {"games": [{"seed": 0, "key": "...", "sha256": "..."}, ...]}
{"compile": "/folder/0a1b2c.json"}  ->  {}
```

The process ends when its input ends, so it never outlives its parent. Two parts of the package are replaced,
in this process only: the knowledge base is parsed once per folder instead of once per game (ten times
faster), and makers that compile a game to play its walkthrough play it on the game's logic instead (which
saves seconds per game). A game is kept only if its own plan wins it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import textworld
from textworld.generator import compile_game
from textworld.generator.chaining import QuestGenerationError
from textworld.generator.data import KnowledgeBase
from textworld.generator.maker import GameMaker

from agentrl.types import seed_of
from agentrl_environments.textworld import engine, families
from agentrl_environments.textworld.maker_inputs import knowledge


def _set_walkthrough(maker: GameMaker, commands: Sequence[str]) -> None:
    """Play ``commands`` on the game's logic, and give each event of a quest the actions that trigger it.

    This replaces ``GameMaker.set_walkthrough``, which plays on the compiled game.

    Commands that are not admissible are left out: TextWorld's walkthrough of a cooking game opens a fridge
    twice, which TextWorld would read as taking an ingredient twice.
    """
    graph = engine.GameGraph(maker.build(validate=False))
    node, actions, accepted = graph.start, [], []
    waiting = [event for quest in maker.quests for event in quest.win_events]
    for command in graph.play(commands)[0]:
        actions.append(node.actions[command])
        accepted.append(command)
        node = graph.step(node, command)
        for event in [event for event in waiting if event.is_triggering(node.state)]:
            event.actions, event.commands = actions, accepted
            waiting.remove(event)


def make(name: str, base: int, number: int) -> dict[str, Any] | None:
    """Return the game of a family and a seed, as the JSON value of a ``.json`` game file.

    The seed is derived from ``base`` and ``number``. Return ``None`` if the seed gives no game, or if the
    game's own plan does not win the game.
    """
    family = families.parse(name)
    try:
        game = family.make(seed_of("textworld", base, number) % 2**31)
    except QuestGenerationError:
        return None
    # NumPy strings and tuples become plain JSON; the package's install folder, which it writes, is removed.
    data: dict[str, Any] = json.loads(json.dumps(game.serialize()))
    data["KB"]["text_grammars_path"] = ""
    graph = engine.GameGraph(engine.load(data))
    data["metadata"]["walkthrough"], end = graph.play(graph.plan)
    return data if end.won else None


def make_block(name: str, base: int, seeds: Sequence[int], into: Path) -> list[dict[str, Any]]:
    """Write the games of ``seeds`` into the folder ``into``, one per distinct structure.

    Return their entries for the index, in the order of ``seeds``.
    """
    games: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        data = make(name, base, seed)
        if data is None:
            continue
        key = engine.structure(engine.load(data))
        if key not in games:
            content = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
            (into / f"{key[:12]}.json").write_bytes(content)
            games[key] = {"seed": seed, "key": key, "sha256": hashlib.sha256(content).hexdigest()}
    return list(games.values())


def compile_file(path: Path) -> None:
    """Compile a ``.json`` game into a ``.z8`` file beside it, which appears only when it is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        options = textworld.GameOptions()
        options.path = str(Path(folder) / "game.z8")
        options.force_recompile = True
        compile_game(engine.load(json.loads(path.read_bytes())), options)
        Path(options.path).replace(path.with_suffix(".z8"))


def main() -> None:
    """Answer the jobs on standard input, one per line, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of the package and its compiler must not mix with the answers
    KnowledgeBase.load = classmethod(lambda cls, *args, **kwargs: knowledge(*args, **kwargs))
    GameMaker.set_walkthrough = _set_walkthrough
    for line in sys.stdin:
        job = json.loads(line)
        answer: dict[str, Any] = {}
        if "make" in job:
            answer["games"] = make_block(job["make"], job["base"], job["seeds"], Path(job["into"]))
        else:
            compile_file(Path(job["compile"]))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
