"""The names of all metrics, with their units and meanings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agentrl.errors import ConfigError

METRICS: Mapping[str, str] = {
    # of the episodes: means over episodes unless stated otherwise; failed episodes are never included
    "rollout/episodes": "episodes that terminated or were truncated",
    "rollout/groups": "groups, one per task",
    "rollout/attempts": "episodes that were started, including failed ones",
    "rollout/failed": "attempts in which the environment, sandbox or policy broke",
    "rollout/success": "share of episodes that solved their task",
    "rollout/return": "sum of the environment's own rewards",
    "rollout/turns": "turns",
    "rollout/tokens": "sampled tokens",
    "rollout/prompt_tokens": "tokens of context that were not sampled",
    "rollout/invalid": "share of turns whose action the environment refused",
    "rollout/entropy": "negative log-probability of sampled tokens, in nats, mean over tokens: "
    "an estimate of the policy's entropy",
    "rollout/repetition": "share of turns after the first that repeat an earlier action of the episode",
    "rollout/clipped": "share of actions that were cut off by the token limit",
    "rollout/truncated": "share of episodes that were ended by a limit",
    "rollout/context_full": "share of episodes that were ended by the limit on the context's length",
    "rollout/staleness_mean": "updates between the weights that acted and those that learn, "
    "mean over actions",
    "rollout/staleness_max": "the same, maximum over actions",
    "rollout/logprob_gap": "largest difference, in nats, between the sampler's and the learner's "
    "log-probability of a token",
    "reward/return": "sum of the ledger over an episode",
    "reward/*": "sum of one component of the ledger over an episode",
    "credit/advantage_mean": "advantage, mean over action tokens",
    "credit/advantage_std": "advantage, standard deviation over action tokens",
    "credit/zero_variance": "share of groups of two or more whose episodes all got the same return, "
    "so that there is nothing to learn from",
    "credit/explained_variance": "share of the variance of the critic's targets that its values explain",
    # measured by the learner
    "learner/loss": "the loss, mean over optimiser steps",
    "learner/value_loss": "the critic's loss, mean over optimiser steps",
    "learner/observation_nll": "negative log-likelihood of the context's tokens, in nats, "
    "mean over optimiser steps",
    "learner/grad_norm": "gradient norm before clipping, mean over optimiser steps",
    "learner/lr": "learning rate",
    "learner/tokens": "tokens of the update's batch",
    "learner/action_tokens": "tokens of the batch that were sampled and are trained on",
    "learner/tokens_per_s": "tokens that the update processed per second of wall clock",
    "learner/logprob_gap": "largest difference, in nats, from the sampler's log-probabilities "
    "before the first step",
    "learner/*": "a measurement of a loss or regulariser, mean over action tokens",
    "judge/*": "questions to a judge: asked, answered from the cache, failed, late, over the budget; "
    "and episodes that were not judged",
    "guidance/*": "counts of a source that guides the agent: groups or episodes that it helped, "
    "and the measurements on which it decided",
    "lagrangian/*": "weight of a component under the constraints; `_return`: an episode's sum of "
    "a constrained component before weighting, mean",
    "hypervolume/*": "`weight` of all rewards; `_return`: an episode's sum of a component "
    "before weighting, mean",
    "gate/*": "share of episodes that passed the gate of this component and all gates above it",
    "monitor/*": "1 while a monitor reports a problem",
    "filter/*": "groups or episodes that a filter dropped",
    "scorer/*": "training of a model that scores steps: `_loss`, `_pairs` of episodes it was trained on, "
    "`_accuracy` in ranking them, `_grad_norm`",
    "sampler/*": "the estimates of a sampler that learns",
    "eval/*": "an evaluation's result: means over the panel's tasks; `_low` and `_high` are the ends of "
    "the 95% interval",
    # not repeatable: written to another file
    "sandbox/*": "sandboxes since the start of the process: opened, from the pool, failed, retried, reaped, "
    "seconds to start (`_s`)",
    "time/*": "wall-clock time of a part of the update, in seconds (`_s`)",
    "machine/*": "memory in MiB (`_mib`), processor and device load",
}
"""The meaning of every metric, with its unit, by name; ``*`` in a name stands for any ending."""

_NAMES = re.compile(
    "|".join(
        "".join(".+" if part == "*" else re.escape(part) for part in re.split(r"(\*)", name))
        for name in METRICS
    )
)


def check_names(names: Sequence[str]) -> None:
    """Refuse metrics that ``METRICS`` does not list.

    >>> check_names(["rollout/success", "learner/entropy"])
    >>> check_names(["rollout/succes"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    agentrl.errors.ConfigError: no metric is named 'rollout/succes'; add it to METRICS in metric_names.py ...
    """
    if unknown := [name for name in names if not _NAMES.fullmatch(name)]:
        raise ConfigError(
            f"no metric is named {', '.join(map(repr, unknown))}; add it to METRICS in metric_names.py "
            "with its unit and meaning"
        )
