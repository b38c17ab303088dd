"""A thermostat for entropy: imitate successes that are sampled at a higher or a lower temperature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrl.errors import ConfigError
from agentrl.recipe import Stage
from agentrl.sources.guided import Guided, Lesson, credit_problems, draw_again, episode_key, loss_problems
from agentrl.types import ScoredGroup, Trajectory, stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermostat(Guided):
    """Keep the entropy near ``target``: imitate successes sampled at another temperature (AEPO, 2025).

    ``J = J_RL + alpha * E_{y ~ pi^T}[1[success] grad log pi(y)]``, with ``T = hot`` if the entropy is at most
    ``target``, else ``T = cold``; ``alpha`` is the argument ``given`` of ``Given``. The entropy is estimated
    from the tokens that the agent sampled for this update (their mean negative log-probability, in nats), so
    there is no lag and no state: a resumed run decides as if it had not been stopped. Published code replaces
    other episodes with the successes; here they are added.

    Correcting for the temperature with an importance weight would undo the effect, so these episodes count as
    given and have no ratio.

    Metrics: ``guidance/entropy`` is the estimate, ``guidance/temperature`` the temperature that was chosen,
    ``guidance/tempered`` counts the successes that were added.
    """

    target: float = 0.75
    """Entropy to keep, in nats per token."""
    hot: float = 1.2
    """Sampling temperature if the entropy is at most ``target``; its successes spread the policy."""
    cold: float = 0.8
    """Sampling temperature if the entropy is above ``target``; its successes sharpen the policy."""
    num_groups: int = 4
    """Number of groups, from the first of the update, whose tasks are played again at the chosen temperature.

    The published share is a quarter."""
    most: int = 60
    """Maximum number of successes that are added; half of it if the entropy is above the target."""

    def own_problems(self, stage: Stage) -> Iterator[str]:
        """Check the numbers, and that the stage has a loss and an advantage for imitated episodes."""
        if not 0.0 < self.cold <= self.hot:
            yield f"source.cold is {self.cold:g} and source.hot {self.hot:g}; 0 < cold <= hot is needed"
        if self.most < 2:
            yield (
                f"source.most is {self.most}; at least 2 is needed, because half of it is used above the "
                "target"
            )
        yield from loss_problems(self, stage)
        yield from credit_problems(self, stage)

    def temperature(self, entropy: float) -> float:
        """Return the temperature to sample at if the policy has ``entropy`` nats per token.

        >>> [Thermostat(source=None, target=0.75).temperature(nats) for nats in (0.5, 0.75, 0.9)]
        [1.2, 1.2, 0.8]
        """
        return self.hot if entropy <= self.target else self.cold

    async def guide(self, lesson: Lesson, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Play the first tasks again at the chosen temperature; add the successes, one group per task."""
        entropy = sampled_entropy([scored.trajectory for group in groups for scored in group])
        if entropy is None:
            return list(groups)
        if lesson.ground.agent_at is None:
            raise ConfigError(
                "Thermostat samples the agent at another temperature, and Playground.agent_at is not set; "
                "set it to a function from a temperature to a policy"
            )
        temperature = self.temperature(entropy)
        draws = [
            replace(
                draw_again(group[0]),
                num_episodes=len(group),
                first_sample=stand_in(max(scored.trajectory.sample for scored in group)),
            )
            for group in groups[: self.num_groups]
        ]
        found = await lesson.play(draws, policy=lesson.ground.agent_at(temperature))
        most = self.most if entropy <= self.target else self.most // 2
        successes = [scored for scored in found.values() if scored.trajectory.success][:most]
        added: dict[str, ScoredGroup] = {}
        for scored in successes:
            task, _ = episode_key(scored)
            added[task] = (*added.get(task, ()), replace(scored, trajectory=_given(scored.trajectory)))
        lesson.count("guidance/entropy", entropy)
        lesson.count("guidance/temperature", temperature)
        lesson.count("guidance/tempered", len(successes))
        return [*groups, *added.values()]


def sampled_entropy(trajectories: Sequence[Trajectory]) -> float | None:
    """Return the mean negative log-probability, in nats, of the tokens that the agent sampled.

    ``None`` if there are none.
    """
    own_turns = [turn for trajectory in trajectories if not trajectory.given for turn in trajectory.turns]
    logprobs = [turn.action.logprobs for turn in own_turns if len(turn.action.tokens)]
    if not logprobs:
        return None
    return -float(np.mean(np.concatenate(logprobs), dtype=np.float64))


def _given(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory with the version of every action set to -1, which marks its tokens as given."""
    turns = tuple(replace(turn, action=replace(turn.action, version=-1)) for turn in trajectory.turns)
    return replace(trajectory, turns=turns)
