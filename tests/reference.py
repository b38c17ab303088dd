"""Slow references in plain Python floats, written from the definitions.

They share nothing with the code under test. A trajectory is a list of turns ``(reward, [tokens])``; each
function's name says what it computes.
"""

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float], ddof: int) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - ddof))


def grpo(returns: Sequence[float], eps: float = 1e-6) -> list[float]:
    return [(value - mean(returns)) / (deviation(returns, 1) + eps) for value in returns]


def dr_grpo(returns: Sequence[float]) -> list[float]:
    return [value - mean(returns) for value in returns]


def rloo(returns: Sequence[float]) -> list[float]:
    others = [[other for j, other in enumerate(returns) if j != i] for i in range(len(returns))]
    return [value - mean(rest) for value, rest in zip(returns, others, strict=True)]


def discounted(rewards: Sequence[float], start: int, gamma: float) -> float:
    return math.fsum(gamma ** (n - start) * rewards[n] for n in range(start, len(rewards)))


def turn_rloo(group: Sequence[Sequence[float]], gamma: float) -> list[list[float]]:
    """Before the division by the batch's deviation.

    ``group[i][n]`` is what member ``i`` was paid at turn ``n``.
    """
    starts = [discounted(rewards, 0, gamma) if rewards else 0.0 for rewards in group]
    return [
        [discounted(rewards, n, gamma) - mean(starts[:i] + starts[i + 1 :]) for n in range(len(rewards))]
        for i, rewards in enumerate(group)
    ]


def masked_token_gae(
    rewards: Sequence[float], values: Sequence[float], mask: Sequence[int], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Token GAE over a whole context; other tokens pass the next value and the running advantage through."""
    advantages = [0.0] * len(rewards)
    next_value = running = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        if mask[t]:
            running = rewards[t] + gamma * next_value - values[t] + gamma * lam * running
            next_value = values[t]
            advantages[t] = running
    return advantages, [
        advantage + value if on else 0.0
        for advantage, value, on in zip(advantages, values, mask, strict=True)
    ]


def gae_as_a_sum(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """``A_t = sum_l (gamma lam)^l delta_{t+l}``: the definition, not the recursion."""
    following = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=True)]
    return [
        math.fsum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def whitened(values: Sequence[float], eps: float = 1e-8) -> list[float]:
    return [(value - mean(values)) / math.sqrt(deviation(values, 1) ** 2 + eps) for value in values]


def clipped_surrogate(
    log_ratio: float, advantage: float, low: float, high: float, dual: float | None = None
) -> float:
    ratio = math.exp(log_ratio)
    bounded = min(max(ratio, 1 - low), 1 + high)
    loss = -min(ratio * advantage, bounded * advantage)
    return min(loss, -dual * advantage) if dual is not None and advantage < 0 else loss


def token_mean(losses: Sequence[Sequence[Sequence[float]]]) -> float:
    tokens = [loss for sequence in losses for turn in sequence for loss in turn]
    return mean(tokens) if tokens else 0.0


def seq_sum_then_mean(losses: Sequence[Sequence[Sequence[float]]]) -> float:
    sums = [math.fsum(loss for turn in sequence for loss in turn) for sequence in losses if any(sequence)]
    return mean(sums) if sums else 0.0


def seq_mean_then_mean(losses: Sequence[Sequence[Sequence[float]]]) -> float:
    means = [mean([loss for turn in sequence for loss in turn]) for sequence in losses if any(sequence)]
    return mean(means) if means else 0.0


def turn_mean(losses: Sequence[Sequence[Sequence[float]]]) -> float:
    means = [mean(turn) for sequence in losses for turn in sequence if turn]
    return mean(means) if means else 0.0
