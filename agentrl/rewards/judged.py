"""A reward from a judge: a language model behind any ``Policy``, asked by a rubric.

The judge's answers come from outside and may be late, wrong or missing. So all questions about an update are
asked at once (``ask``), concurrently, before anything is paid. Answers are cached in a file by the content of
the question, so that neither a resumed run nor ``agentrl rescore`` asks anything twice. An episode that the
judge could not judge is never paid 0: it is left out of its group and counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from agentrl.errors import AgentRLError, ConfigError, Unjudged, boundary
from agentrl.rewards import Reward
from agentrl.rewards.rubrics import Rubric, pairs, transcript
from agentrl.types import Action, Group, Ledger, Observation, Trajectory, Turn, floats, seed_of


class Judge(Protocol):
    """A source of answers: a ``Policy`` that is asked a single question in each episode."""

    async def act(self, turns: Sequence[Turn], observation: Observation, *, seed: int) -> Action:
        """Return an action whose text is the answer."""
        ...


@dataclass(slots=True)
class _AnswerCache:
    """The judge's answers by the hash of their question, kept in a file of JSON lines."""

    path: Path | None
    answers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    record = json.loads(line)
                    self.answers[record["key"]] = record["answer"]
                except (ValueError, KeyError, TypeError):
                    continue  # the process was killed while it wrote the line; the question is asked again

    def add(self, key: str, answer: str) -> None:
        self.answers[key] = answer
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            separator = "\n" if self._ends_within_a_line() else ""
            with self.path.open("a") as file:
                file.write(separator + json.dumps({"key": key, "answer": answer}) + "\n")

    def _ends_within_a_line(self) -> bool:
        assert self.path is not None
        if not self.path.exists() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) != b"\n"


@dataclass(slots=True)
class Judged(Reward):
    """Pays the number in [0, 1] that ``rubric`` reads from the judge's answer.

    A rubric about episodes pays on the last turn, one about turns pays each turn.

    Args:
        judge: opens the judge, such as ``lambda: OpenAIPolicy("http://localhost:8000/v1", "judge")``.
        rubric: how questions are asked and answers are read.
        name: name of the component that is paid.
        deadline_s: maximum number of seconds to wait for one answer.
        attempts: maximum number of times that a question is asked until its answer can be read.
        concurrency: maximum number of questions that wait for an answer at the same time.
        budget: maximum number of answered questions, including those in the cache; 0 means no limit.
        cache: file of answers; with ``None``, answers are kept only in the memory of this process.

    >>> from agentrl.rewards.rubrics import Pointwise
    >>> Judged(lambda: None, Pointwise("Was it polite?")).components
    frozenset({'judge'})
    """

    judge: Callable[[], AbstractAsyncContextManager[Judge]]
    rubric: Rubric
    name: str = "judge"
    deadline_s: float = 60.0
    attempts: int = 2
    concurrency: int = 16
    budget: int = 0
    cache: Path | None = None
    signals: ClassVar[frozenset[str]] = frozenset()
    _opened: _AnswerCache | None = field(default=None, init=False, repr=False, compare=False)
    _wins: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.deadline_s <= 0 or self.attempts < 1 or self.concurrency < 1 or self.budget < 0:
            raise ConfigError(
                "a judge needs deadline_s > 0, attempts >= 1, concurrency >= 1 and budget >= 0; "
                f"found {self.deadline_s:g}, {self.attempts}, {self.concurrency} and {self.budget}"
            )

    @property
    def components(self) -> frozenset[str]:
        """The single component that it pays."""
        return frozenset({self.name})

    async def ask(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """Ask every question about ``groups`` that has no answer in the cache; return counts by metric name.

        Raises:
            ConfigError: the judge rejects the key or does not know the model; asking again would not help.
        """
        counts: Counter[str] = Counter(asked=0, cached=0, failed=0, late=0, over_budget=0)
        questions = list(dict.fromkeys(question for group in groups for question in self._questions(group)))
        fresh = [question for question in questions if self._read(question) is None]
        counts["cached"] = len(questions) - len(fresh)
        if self.budget and len(self._answers.answers) + len(fresh) > self.budget:
            room = max(self.budget - len(self._answers.answers), 0)
            counts["over_budget"] = len(fresh) - room
            fresh = fresh[:room]
        if fresh:
            slots = asyncio.Semaphore(self.concurrency)
            try:
                async with self.judge() as judge, asyncio.TaskGroup() as asking:
                    for question in fresh:
                        asking.create_task(self._ask(judge, question, slots, counts))
            except* ConfigError as refused:
                raise refused.exceptions[0] from None
        if self.rubric.scope == "pair":
            for group in groups:
                self._compare(group)
        return {f"judge/{name}": float(count) for name, count in counts.items()}

    def __call__(self, trajectory: Trajectory) -> Ledger:
        """Return ``{name: the judge's numbers}``, one number per turn.

        Raises:
            Unjudged: an answer about this episode is missing.
        """
        num_turns = len(trajectory.turns)
        if self.rubric.scope == "turn":
            paid = [
                self._answered(self.rubric.question([transcript(trajectory, until=n)]), trajectory)
                for n in range(num_turns)
            ]
            return {self.name: floats(paid)}
        paid_N = np.zeros(num_turns)
        if num_turns:
            paid_N[-1] = self._of_episode(trajectory)
        return {self.name: floats(paid_N)}

    def _of_episode(self, trajectory: Trajectory) -> float:
        if self.rubric.scope == "episode":
            return self._answered(self.rubric.question([transcript(trajectory)]), trajectory)
        key = transcript(trajectory)
        if (wins := self._wins.get(f"{trajectory.task.id}\n{key}")) is None:
            raise Unjudged(f"{trajectory.task.id}#{trajectory.sample} was compared with no other episode")
        return wins

    def _answered(self, question: str, trajectory: Trajectory) -> float:
        if (number := self._read(question)) is None:
            raise Unjudged(f"the judge gave no answer about {trajectory.task.id}#{trajectory.sample}")
        return number

    def _questions(self, group: Group) -> list[str]:
        if self.rubric.scope == "turn":
            return [
                self.rubric.question([transcript(one, until=n)])
                for one in group
                for n in range(len(one.turns))
            ]
        if self.rubric.scope == "episode":
            return [self.rubric.question([transcript(one)]) for one in group if one.turns]
        return [self.rubric.question([transcript(group[i]), transcript(group[j])]) for i, j in pairs(group)]

    def _compare(self, group: Group) -> None:
        """Store each member's mean result against the others, if all its comparisons have answers."""
        results: list[list[float | None]] = [[] for _ in group]
        for i, j in pairs(group):
            won = self._read(self.rubric.question([transcript(group[i]), transcript(group[j])]))
            results[i].append(won)
            results[j].append(None if won is None else 1.0 - won)
        for one, found in zip(group, results, strict=True):
            known = [result for result in found if result is not None]
            if known and len(known) == len(found):
                self._wins[f"{one.task.id}\n{transcript(one)}"] = sum(known) / len(known)

    async def _ask(self, judge: Judge, question: str, slots: asyncio.Semaphore, counts: Counter[str]) -> None:
        """Ask at most ``attempts`` times, until an answer can be read; count a question without an answer."""
        async with slots:
            reason = "failed"
            for attempt in range(self.attempts):
                counts["asked"] += 1
                try:
                    async with asyncio.timeout(self.deadline_s):
                        with boundary(Unjudged, "the judge"):
                            action = await judge.act(
                                (), Observation.text(question), seed=seed_of(question, attempt)
                            )
                except ConfigError:
                    raise
                except TimeoutError:
                    reason = "late"
                    continue
                except AgentRLError:
                    reason = "failed"
                    continue
                if self.rubric.read(action.text) is not None:
                    self._answers.add(self._key(question), action.text)
                    return
            counts[reason] += 1

    @property
    def _answers(self) -> _AnswerCache:
        if self._opened is None:
            self._opened = _AnswerCache(self.cache)
        return self._opened

    def _read(self, question: str) -> float | None:
        answer = self._answers.answers.get(self._key(question))
        return None if answer is None else self.rubric.read(answer)

    def _key(self, question: str) -> str:
        return hashlib.sha256(f"{self.name}\n{question}".encode()).hexdigest()[:32]
