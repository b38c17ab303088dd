"""Credit by how certain the policy was: entropy-modulated policy gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit import Modifier
from agentrl.credit.turns import Array, checked
from agentrl.types import Credited, FloatArray, Need, Scored, ScoredGroup, floats


@dataclass(frozen=True, slots=True)
class EMPG(Modifier):
    """``A' = A * g_n + zeta * f_n``, then centred over the batch: EMPG, by the entropy of each turn ``n``.

    Wang et al. 2025, "Harnessing uncertainty"; the unit of centring (``center``) and the defaults are
    reconstructed. With ``H_n`` the mean entropy of a turn's tokens, min-max normalised over the batch's turns
    to ``h_n`` in [0, 1]:

    * ``g_n = exp(-kappa h_n) / mean(exp(-kappa h))`` has mean 1. Turns on which the policy was certain are
      amplified and uncertain ones are damped: at low entropy gradients are small by themselves.
    * ``f_n = exp(-kappa_future h_{n+1})`` is a bonus for reaching a turn on which the policy is certain;
      the last turn of an episode has no bonus.

    With ``kappa = 0`` only the bonus is left, with ``zeta = 0`` only the scaling by ``g_n``. Turns without
    tokens are ignored.
    """

    kappa: float = 1.0
    kappa_future: float = 1.0
    zeta: float = 0.05
    center: Literal["turn", "token", "none"] = "turn"
    eps: float = 1e-8
    needs: ClassVar[frozenset[Need]] = frozenset({"entropies"})

    def __call__(
        self, groups: Sequence[ScoredGroup], credited: Sequence[tuple[Credited, ...]]
    ) -> list[tuple[Credited, ...]]:
        """Return the modulated advantages; the critic's targets are unchanged."""
        checked(groups, self.needs)
        pairs = [
            pair
            for group, credit in zip(groups, credited, strict=True)
            for pair in zip(group, credit, strict=True)
        ]
        scales, bonuses = self._modulation([mean_entropies(scored) for scored, _ in pairs])
        modified: list[Array] = []
        lengths: list[Array] = []
        for (scored, one), scale_K, bonus_K in zip(pairs, scales, bonuses, strict=True):
            lengths_K = scored.num_tokens_N[scored.num_tokens_N > 0]
            modified.append(
                np.repeat(scale_K, lengths_K) * one.advantages_T + self.zeta * np.repeat(bonus_K, lengths_K)
            )
            lengths.append(np.repeat(lengths_K, lengths_K).astype(np.float64))
        centre = self._centre(
            np.concatenate([np.zeros(0), *modified]), np.concatenate([np.ones(0), *lengths])
        )
        fresh = iter([floats(advantages_T - centre) for advantages_T in modified])
        return [tuple(replace(one, advantages_T=next(fresh)) for one in credit) for credit in credited]

    def _modulation(self, entropies: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Return the factors ``g`` and the bonuses ``f`` of the turns of each trajectory."""
        flat = np.concatenate([np.zeros(0), *entropies])
        if not len(flat):
            return list(entropies), list(entropies)
        low, high = float(flat.min()), float(flat.max())
        levels = [(entropies_K - low) / (high - low + self.eps) for entropies_K in entropies]
        mean = float(np.exp(-self.kappa * np.concatenate(levels)).mean())
        scales = [np.exp(-self.kappa * levels_K) / mean for levels_K in levels]
        bonuses = [
            np.append(np.exp(-self.kappa_future * levels_K[1:]), np.zeros(min(len(levels_K), 1)))
            for levels_K in levels
        ]
        return scales, bonuses

    def _centre(self, values_T: Array, lengths_T: Array) -> float:
        if self.center == "none" or not len(values_T):
            return 0.0
        weights_T = 1.0 / lengths_T if self.center == "turn" else np.ones(len(values_T))
        return float(weights_T @ values_T / weights_T.sum())


def mean_entropies(scored: Scored) -> Array:
    """Return the mean token entropy (nats) of each turn that has tokens."""
    entropies_T: FloatArray | None = scored.measured.entropies
    assert entropies_T is not None
    lengths = scored.num_tokens_N[scored.num_tokens_N > 0]
    until = np.concatenate([np.zeros(1), np.cumsum(entropies_T, dtype=np.float64)])
    ends = np.cumsum(lengths)
    return np.asarray((until[ends] - until[ends - lengths]) / np.maximum(lengths, 1))
