"""Checks of a recipe before any work: every problem is listed with what was found and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentrl.credit import Credit, Modifier
from agentrl.errors import ConfigError
from agentrl.losses import Loss
from agentrl.options import check_types, too_small
from agentrl.recipe import Recipe, Source, Stage
from agentrl.rewards import Reward, Transform
from agentrl.samplers import Filter


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot run as meant, before any work.

    Raises:
        ConfigError: lists everything that is wrong, each with what was found and how to fix it.
    """
    problems = list(check_types(recipe)) or list(_problems(recipe))
    if problems:
        raise ConfigError(
            f"recipe {recipe.name!r} cannot run:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


def _problems(recipe: Recipe) -> Iterator[str]:
    max_turns = getattr(recipe.env, "max_turns", 0)  # nothing forces an environment to set it
    if max_turns < 1:
        yield f"env.max_turns is {max_turns}; an episode needs at least 1 turn"
    yield from too_small(recipe, "", num_workers=1)
    yield from too_small(recipe.checkpoints, "checkpoints.", every=1, keep=1)
    yield from too_small(recipe.limits, "limits.", concurrency=1, max_attempts=1, max_turns=0)
    yield from too_small(recipe.evaluation, "evaluation.", num_tasks=0, episodes_per_task=1)
    yield from too_small(recipe.compute, "compute.", token_budget=1, threads=0)
    for where, sampling in (
        ("sampling.", recipe.sampling),
        ("evaluation.sampling.", recipe.evaluation.sampling),
    ):
        yield from too_small(sampling, where, max_tokens=1, top_k=0)
        if not 0 < sampling.top_p <= 1:
            yield f"{where}top_p is {sampling.top_p:g}; it must be above 0 and at most 1"
    if recipe.sampling.temperature <= 0:
        yield (
            f"sampling.temperature is {recipe.sampling.temperature:g}; training divides by it, and needs "
            "episodes that differ: set it above 0 (only evaluation.sampling may be greedy)"
        )
    if not recipe.stages:
        yield "stages is empty; a run needs at least one stage"
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        yield f"stage names repeat: {', '.join(names)}; give each stage another name"
    for stage in recipe.stages:
        for problem in _stage_problems(recipe, stage):
            yield f"stage {stage.name!r}: {problem}"
    for split in sorted(recipe.splits - set(recipe.env.splits)):
        yield f"split {split!r} does not exist; the environment has {', '.join(recipe.env.splits)}"


def _unfit_parts(stage: Stage) -> Iterator[str]:
    """Yield a line for each part of the stage that lacks a field or method that its contract declares."""
    contracts: tuple[tuple[str, type, Sequence[object]], ...] = (
        ("source", Source, (stage.source,)),
        ("reward", Reward, (stage.reward,)),
        ("transform", Transform, stage.transforms),
        ("filter", Filter, stage.filters),
        ("credit", Credit, (stage.credit,)),
        ("modifier", Modifier, stage.modifiers),
        ("loss", Loss, (stage.objective.loss,)),
        ("regulariser", Loss, stage.objective.regularisers),
    )
    for role, contract, parts in contracts:
        declared = sorted(name for name in vars(contract) if not name.startswith("_"))
        for part in parts:
            lacking = [name for name in declared if not hasattr(part, name)]
            if lacking:
                kind = getattr(part, "__name__", type(part).__name__)
                yield (
                    f"{role} {kind} lacks {', '.join(lacking)}; let it inherit from "
                    f"{contract.__module__}.{contract.__name__}, which declares them"
                )


def _stage_problems(recipe: Recipe, stage: Stage) -> Iterator[str]:
    unfit = list(_unfit_parts(stage))
    if unfit:
        yield from unfit
        return
    yield from too_small(stage, "", updates=1, epochs=1, minibatches=1)
    yield from stage.source.problems(stage)
    if stage.source.group_size < stage.credit.min_group:
        yield (
            f"{type(stage.credit).__name__} compares the episodes of a group and needs at least "
            f"{stage.credit.min_group} of them; group_size is {stage.source.group_size}; raise it, or use "
            "another credit"
        )
    if stage.objective.whole_groups and stage.source.group_size < 2:
        yield (
            "the objective compares the episodes of a group, and group_size is 1; set it to at least 2, or "
            "use another loss"
        )
    if not stage.source.plays_anew:
        for transform in stage.payment.remembering:
            yield (
                f"{type(transform).__name__} learns from what the agent does, and the episodes of "
                f"{type(stage.source).__name__} stay the same; use it in a stage in which the agent plays"
            )
    if "teacher_logprobs" in stage.needs and stage.teacher is None:
        yield (
            "a part of the stage needs teacher_logprobs, and there is no teacher; set Stage.teacher, for "
            "example to Teacher(information=expert_plan)"
        )
    declared = set(recipe.env.signals)
    parts: tuple[Reward | Transform, ...] = (stage.reward, *stage.transforms)
    for part in parts:
        unknown = sorted(part.signals - declared)
        if unknown:
            yield (
                f"{type(part).__name__} reads signals that the environment does not report: "
                f"{', '.join(unknown)}; it reports {', '.join(sorted(declared))}"
            )
    for chosen in stage.filters:
        unpaid = sorted(chosen.components - stage.reward.components)
        if unpaid and not stage.transforms:
            paid = ", ".join(sorted(stage.reward.components))
            yield (
                f"filter {type(chosen).__name__} looks at the reward component {', '.join(unpaid)}; "
                f"the stage pays {paid}"
            )
    truncates = recipe.sampling.top_p < 1 or recipe.sampling.top_k > 0
    if truncates and stage.source.plays_anew and "old_logprobs" not in stage.needs:
        yield (
            "sampling.top_p or top_k truncates what is sampled, so the sampler's log-probabilities, with "
            "which the loss compares, are not the policy's; use top_p=1 and top_k=0, or an objective with "
            "off_policy weights"
        )
    if stage.source.max_staleness > 0 and "old_logprobs" not in stage.needs:
        yield (
            f"max_staleness is {stage.source.max_staleness}, so the stage trains on episodes of older "
            "weights; give the objective off_policy weights (losses.tis), which correct for it"
        )
