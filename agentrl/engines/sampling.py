"""Drawing tokens from logits, with one independent random stream per request.

The uniform number behind token ``i`` of a request is a pure function of (seed, ``i``), and the token is found
by inverting the cumulative distribution in float64. A drawn token therefore depends on its request alone, not
on other requests in the batch or on their order.

Axes: ``R`` requests, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class SamplingParameters(Protocol):
    """How the tokens of one request are drawn; ``agentrl.policy.Sampling`` has these attributes."""

    @property
    def temperature(self) -> float:
        """Number by which the logits are divided; 0 always draws the most likely token."""
        ...

    @property
    def top_p(self) -> float:
        """Probability mass of the most likely tokens that may be drawn; 1 allows all tokens."""
        ...

    @property
    def top_k(self) -> int:
        """Number of the most likely tokens that may be drawn; 0 allows all tokens."""
        ...


def uniforms(seeds_R: npt.NDArray[np.uint64], counters_R: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) per (seed, counter): the top 53 bits of two rounds of SplitMix64.

    Source: Steele, Lea & Flood 2014.

    >>> float(uniforms(np.array([7], np.uint64), np.array([0], np.uint64))[0]).hex()
    '0x1.7169852efd579p-1'
    """
    mixed = _splitmix(_splitmix(seeds_R) ^ (counters_R * np.uint64(0xD1342543DE82EF95)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def log_distribution(logits_RV: Tensor, samplings: Sequence[SamplingParameters]) -> Tensor:
    """Return the log-probabilities to sample from, ``[R, V]`` float32, after temperature, top-k, top-p.

    Top-p keeps the smallest set of most likely tokens whose mass reaches ``top_p`` (Holtzman et al. 2020), at
    least one token; ties are kept in the order of ids. A temperature of 0 is a point mass on the most likely
    token, with log-probability 0; if several are equally likely, on the one with the smallest id.
    """
    device = logits_RV.device
    temperatures_R1 = torch.tensor([[sampling.temperature or 1.0] for sampling in samplings], device=device)
    logprobs_RV = torch.log_softmax(logits_RV.float() / temperatures_R1, dim=-1)
    truncated = [row for row, sampling in enumerate(samplings) if sampling.top_k > 0 or sampling.top_p < 1.0]
    if truncated:
        rows_S = torch.tensor(truncated, device=device)
        logprobs_RV[rows_S] = _truncate(logprobs_RV[rows_S], [samplings[row] for row in truncated])
    greedy = [row for row, sampling in enumerate(samplings) if sampling.temperature == 0.0]
    if greedy:
        rows_S = torch.tensor(greedy, device=device)
        best_S = logits_RV[rows_S].argmax(dim=-1)
        logprobs_RV[rows_S] = -torch.inf
        logprobs_RV[rows_S, best_S] = 0.0
    return logprobs_RV


def _truncate(logprobs_SV: Tensor, samplings: Sequence[SamplingParameters]) -> Tensor:
    """Keep the ``top_k`` most likely tokens of each row, then ``top_p`` of their mass, and normalise."""
    device, vocab_size = logprobs_SV.device, logprobs_SV.shape[1]
    top_k_S1 = torch.tensor([[sampling.top_k or vocab_size] for sampling in samplings], device=device)
    top_p_S1 = torch.tensor([[sampling.top_p] for sampling in samplings], device=device, dtype=torch.float64)
    ordered_SV, order_SV = logprobs_SV.sort(descending=True, stable=True)
    keep_SV = torch.arange(vocab_size, device=device) < top_k_S1
    mass_SV = torch.softmax(ordered_SV.double().masked_fill(~keep_SV, -torch.inf), dim=-1).cumsum(dim=-1)
    keep_SV[:, 1:] &= (mass_SV[:, :-1] < top_p_S1) | (top_p_S1 >= 1.0)
    kept_SV = torch.empty_like(ordered_SV).scatter_(1, order_SV, ordered_SV.masked_fill(~keep_SV, -torch.inf))
    return torch.log_softmax(kept_SV, dim=-1)


def draw(
    logprobs_RV: Tensor, uniforms_R: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Draw one token per row by inverse transform, and return the tokens and their log-probabilities.

    The token is the first whose cumulative probability exceeds the row's number ``u`` in ``uniforms_R`` times
    the row's total probability. A token of probability 0 is never drawn.
    """
    cumulated_RV = logprobs_RV.double().exp().cumsum(-1)
    total_R1 = cumulated_RV[:, -1:]
    threshold_R1 = torch.from_numpy(uniforms_R).to(logprobs_RV.device)[:, None] * total_R1
    threshold_R1 = torch.minimum(
        threshold_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1))
    )  # the product may round up
    tokens_R1 = torch.searchsorted(cumulated_RV, threshold_R1, right=True)
    logprobs_R1 = logprobs_RV.gather(1, tokens_R1)
    return tokens_R1[:, 0].cpu().numpy(), logprobs_R1[:, 0].cpu().numpy()
