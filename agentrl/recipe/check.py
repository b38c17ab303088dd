"""Whether a recipe can run as meant, found out before any work: each problem with what was found and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator

from agentrl.errors import ConfigError
from agentrl.options import check_types, too_small
from agentrl.recipe import Recipe, Stage
from agentrl.rewards import Reward, Transform


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot run as meant, before any work.

    Raises:
        ConfigError: lists everything that is wrong, each with what was found and how to mend it.
    """
    problems = list(check_types(recipe)) or list(_problems(recipe))
    if problems:
        raise ConfigError(
            f"recipe {recipe.name!r} cannot run:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


def _problems(recipe: Recipe) -> Iterator[str]:
    if (max_turns := getattr(recipe.env, "max_turns", 0)) < 1:  # an environment may forget it
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
            f"sampling.temperature is {recipe.sampling.temperature:g}; training divides by it and learns from variety: give more than 0 "
            "(evaluation.sampling may be greedy)"
        )
    if not recipe.stages:
        yield "stages is empty; a run needs at least one stage"
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        yield f"stage names repeat: {', '.join(names)}; each stage needs a name of its own"
    for stage in recipe.stages:
        for problem in _stage_problems(recipe, stage):
            yield f"stage {stage.name!r}: {problem}"
    splits = {recipe.evaluation.split} | {stage.source.split for stage in recipe.stages} | set(recipe.panels)
    for split in sorted(splits - set(recipe.env.splits)):
        yield f"split {split!r} does not exist; the environment has {', '.join(recipe.env.splits)}"


def _stage_problems(recipe: Recipe, stage: Stage) -> Iterator[str]:
    yield from too_small(stage, "", updates=1, epochs=1, minibatches=1)
    yield from stage.source.problems(stage)
    if stage.source.group_size < stage.credit.min_group:
        yield (
            f"{type(stage.credit).__name__} compares the episodes of a group and needs at least {stage.credit.min_group} of them; "
            f"group_size is {stage.source.group_size}"
        )
    if stage.objective.whole_groups and stage.source.group_size < 2:
        yield "the objective compares the episodes of a group, and group_size is 1; give at least 2, or another loss"
    for transform in () if stage.source.plays_anew else stage.payment.remembering:
        yield f"{type(transform).__name__} learns from what the agent does, and demonstrations stay the same; use it where the agent plays"
    if "teacher_logprobs" in stage.needs and stage.teacher is None:
        yield "a piece of it needs teacher_logprobs, and there is no teacher; set Stage.teacher, such as Teacher(information=expert_plan)"
    declared = set(recipe.env.signals)
    parts: tuple[Reward | Transform, ...] = (stage.reward, *stage.transforms)
    for part in parts:
        unknown = sorted(part.signals - declared)
        if unknown:
            yield f"reward {type(part).__name__} reads {', '.join(unknown)}; the environment reports {', '.join(sorted(declared))}"
    for keep in stage.filters:
        unpaid = sorted(keep.components - stage.reward.components)
        if unpaid and not stage.transforms:
            paid = ", ".join(sorted(stage.reward.components))
            yield f"filter {type(keep).__name__} looks at the reward component {', '.join(unpaid)}; the stage pays {paid}"
    truncates = recipe.sampling.top_p < 1 or recipe.sampling.top_k > 0
    if truncates and stage.source.plays_anew and "old_logprobs" not in stage.needs:
        yield (
            "sampling.top_p or top_k truncates what is sampled, but the loss compares with the log-probabilities of the sampler; "
            "use top_p=1 and top_k=0, or an objective with off_policy weights"
        )
    if stage.source.max_staleness > 0 and "old_logprobs" not in stage.needs:
        yield "max_staleness > 0 trains on older weights' episodes; give the objective off_policy weights (losses.tis) to correct for it"
