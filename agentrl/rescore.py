"""Computes rewards and credit of stored trajectories again, without environment or model, and compares them.

The ledger and the advantages of a trajectory are functions of stored data: its signals and the measurements
on its tokens. So another reward can be tried on the episodes of a finished run, and a run can be audited: its
own chain must reproduce its own numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from agentrl.credit import Credit, Modifier
from agentrl.errors import ConfigError
from agentrl.records.store import Stored
from agentrl.rewards import Reward, Transform
from agentrl.rewards.payment import Gauges, Payment
from agentrl.types import Credited, Ledger, Scored, ScoredGroup

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The parts that turn trajectories into advantages: those of a stage, or others to try."""

    reward: Reward
    transforms: tuple[Transform, ...] = ()
    credit: Credit
    modifiers: tuple[Modifier, ...] = ()

    @property
    def payment(self) -> Payment:
        """The chain's rewards and transforms."""
        return Payment(reward=self.reward, transforms=self.transforms)

    def score(self, stored: Stored, gauges: Gauges | None = None) -> Scored:
        """Return the trajectory with a new ledger and its stored measurements.

        ``gauges`` is passed to ``Payment.score``.
        """
        ((scored,),) = self.payment.score([(stored.trajectory,)], gauges)
        return scored if stored.scored is None else replace(stored.scored, ledger=scored.ledger)

    def assign(self, groups: Sequence[ScoredGroup]) -> list[tuple[Credited, ...]]:
        """Return the credit of every trajectory of an update's groups, in the order of ``groups``.

        Raises:
            ConfigError: the credit or a modifier needs a measurement that was not stored.
        """
        for need in sorted(self.credit.needs.union(*(modifier.needs for modifier in self.modifiers))):
            if any(scored.measured.get(need) is None for group in groups for scored in group):
                raise ConfigError(
                    f"{type(self.credit).__name__} needs {need}, which this run did not store; "
                    "use a rule that does not need it"
                )
        credited = self.credit(groups)
        for modify in self.modifiers:
            credited = modify(groups, credited)
        return credited


@dataclass(frozen=True, slots=True, eq=False)
class Rescored:
    """The episodes of an update: as they were stored, and with the ledger and credit of another chain."""

    update: int
    stage: str
    before: list[tuple[Stored, ...]]
    groups: list[ScoredGroup]
    credited: list[tuple[Credited, ...]]


def rescore(stored: Sequence[Stored], chain: Chain) -> Iterator[Rescored]:
    """Yield the episodes of each update with new ledgers and credit.

    Failed attempts are left out, because they are never paid. Transforms with a memory observe the stored
    episodes only, which do not include groups that filters dropped. ``chain`` itself is not changed.
    """
    chain = replace(chain, transforms=copy.deepcopy(chain.transforms))
    played = [one for one in stored if one.group >= 0]
    for update, of_update in groupby(played, key=lambda one: one.update):
        before = [tuple(group) for _, group in groupby(of_update, key=lambda one: one.group)]
        gauges: Gauges = {}
        groups = [tuple(chain.score(one, gauges) for one in group) for group in before]
        chain.payment.observe(gauges)
        yield Rescored(update, before[0][0].stage, before, groups, chain.assign(groups))


@dataclass(frozen=True, slots=True)
class ComponentDifference:
    """How one component of the ledger changed: the mean over episodes of its sum, before and after."""

    component: str
    before: float
    after: float
    changed: float
    """Share of turns for which the component's number changed."""


@dataclass(frozen=True, slots=True)
class CreditDifference:
    """How the advantages changed, over all action tokens."""

    num_tokens: int
    correlation: float
    """Pearson's correlation of old and new advantages: 1 if both are the same, NaN if one of them does not
    vary.
    """
    flipped: float
    """Share of tokens whose advantage changed its sign."""
    largest: float
    """Largest absolute difference between the old and the new advantage of a token."""


def ledger_differences(rescored: Sequence[Rescored]) -> list[ComponentDifference]:
    """Return how each component of the old or new ledger changed, and how their sum, ``total``, changed."""
    pairs = [
        (_stored_ledger(one), scored.ledger)
        for update in rescored
        for old, new in zip(update.before, update.groups, strict=True)
        for one, scored in zip(old, new, strict=True)
    ]
    names = sorted({name for before, after in pairs for name in (*before, *after)})
    rows = [
        _compared(name, [(_sum(before, (name,)), _sum(after, (name,))) for before, after in pairs])
        for name in names
    ]
    return [
        *rows,
        _compared("total", [(_sum(before, names), _sum(after, names)) for before, after in pairs]),
    ]


def credit_difference(rescored: Sequence[Rescored]) -> CreditDifference | None:
    """Return how the advantages of all action tokens changed, or ``None`` if none were stored."""
    before, after = [], []
    for update in rescored:
        for old, new in zip(update.before, update.credited, strict=True):
            for one, credit in zip(old, new, strict=True):
                if one.credited is not None:
                    before.append(one.credited.advantages_T.astype(np.float64))
                    after.append(credit.advantages_T.astype(np.float64))
    if not before or not sum(map(len, before)):
        return None
    old_T, new_T = np.concatenate(before), np.concatenate(after)
    varies = old_T.std() > 0 and new_T.std() > 0
    return CreditDifference(
        num_tokens=len(old_T),
        correlation=float(np.corrcoef(old_T, new_T)[0, 1]) if varies else float("nan"),
        flipped=float(np.mean(np.sign(old_T) * np.sign(new_T) < 0)),
        largest=float(np.abs(old_T - new_T).max()),
    )


def _stored_ledger(stored: Stored) -> Ledger:
    return {} if stored.scored is None else stored.scored.ledger


def _sum(ledger: Ledger, names: Sequence[str]) -> Array:
    """Return the sum of the components ``names`` that the ledger has, one number per turn."""
    found = [ledger[name].astype(np.float64) for name in names if name in ledger]
    return np.asarray(sum(found)) if found else np.zeros(1)


def _compared(name: str, pairs: Sequence[tuple[Array, Array]]) -> ComponentDifference:
    changed = (
        np.concatenate([np.atleast_1d(np.abs(before - after) > 1e-6) for before, after in pairs])
        if pairs
        else np.zeros(1)
    )
    means = [
        float(np.mean([side.sum() for side in sides])) if sides else 0.0 for sides in zip(*pairs, strict=True)
    ] or [0.0, 0.0]
    return ComponentDifference(name, means[0], means[1], float(changed.mean()))
