"""Sources: where the trajectories of an update come from.

``Rollouts`` lets the agent play new episodes for each update. ``Demonstrations`` lets a policy play once (an
expert, a random policy, or the agent; unsuccessful episodes can be left out) and uses the same episodes again
in each epoch. Both return groups whose rewards are computed and to which the filters were applied, so the
rest of the loop does not depend on the source. The other modules of this package hold sources that wrap
another source (see ``guided``).
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from agentrl.errors import ConfigError, EnvError
from agentrl.options import too_small
from agentrl.policy import Policy
from agentrl.recipe import Collected, Expected, Playground, Source, Stage
from agentrl.records.store import read_trajectories, write_trajectories
from agentrl.rewards.payment import Payment
from agentrl.rollout import Played, play_all
from agentrl.samplers import Draw, Sampler
from agentrl.samplers.uniform import Uniform
from agentrl.types import Group, seed_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts(Source):
    """The agent's own episodes, ``num_groups`` tasks times ``group_size`` episodes, new for every update."""

    num_groups: int = 16
    """Number of groups in one update. Each group holds episodes of one task."""
    group_size: int = 8
    """Number of episodes in each group."""
    split: str = "train"
    """The split whose tasks are played."""
    sampler: Sampler = field(default_factory=Uniform)
    """Chooses the tasks of each update."""
    refills: int = 0
    """How often additional tasks may be drawn if filters leave fewer than ``num_groups`` groups (dynamic
    sampling)."""
    max_staleness: int = 0
    """Number of updates by which playing may run ahead of learning; with 0, playing waits for learning."""

    def expected(self, updates: int) -> Expected:
        """Return how much ``updates`` updates will play, not counting refills."""
        batch = self.num_groups * self.group_size
        return Expected(episodes=batch * updates, batch=batch, acted=batch * updates)

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield one message for each number that is too small."""
        yield from too_small(self, where, num_groups=1, refills=0, max_staleness=0)

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Play, pay and filter until there are enough groups or no refill is left."""
        collected = Collected()
        seed = seed_of(ground.seed, name)
        for refill in range(self.refills + 1):
            missing = self.num_groups - len(collected.groups)
            if not missing:
                break
            draw_index = update * (self.refills + 1) + refill
            draws = self.sampler.draw(
                ground.tasks[self.split],
                draw_index=draw_index,
                num_groups=self.num_groups,
                group_size=self.group_size,
                seed=seed,
            )
            played = await play_all(
                draws,
                policy=ground.agent,
                host=ground.host,
                seed=seed,
                limits=ground.limits,
                on_end=ground.on_end,
            )
            _stop_if_all_failed(played, f"update {update} of stage {name!r}")
            judged, counts = await payment.judge(played.groups)
            for counted, count in counts.items():
                collected.counts[counted] = collected.counts.get(counted, 0.0) + count
            scored = payment.score([group for group in judged if len(group) >= min_group], collected.gauges)
            # before the filters: a curriculum must also learn from the groups that they drop as too easy
            self.sampler.observe(scored)
            kept = payment.keep(scored)
            collected.num_dropped += len(draws) - len(kept[:missing])
            collected.failures += played.failures
            collected.groups += kept[:missing]
        collected.sampler = copy.deepcopy(self.sampler.state_dict())
        return collected


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations(Source):
    """Episodes that a policy plays once, when the stage begins; every epoch trains on the same ones.

    They are stored in the run folder, so a resumed run trains on exactly the same episodes.
    """

    policy: Policy | None
    """Plays the demonstrations; ``None`` is the agent with the weights that it has when the stage begins."""
    num_episodes: int
    """Number of episodes to play."""
    batch: int = 0
    """Number of episodes in one update; 0 means all. Their order is drawn anew for each epoch."""
    split: str = "train"
    """The split whose tasks are played."""
    only_successful: bool = False
    """Keep only the episodes that solved their task."""
    max_turns: int | None = None
    """Maximum number of turns of a demonstration. The run's own limit still applies if it is smaller."""

    @property
    def max_staleness(self) -> int:
        """Always 0: demonstrations are played before the stage learns, not while it learns."""
        return 0

    @property
    def group_size(self) -> int:
        """Always 1: each demonstration is a group."""
        return 1

    @property
    def plays_anew(self) -> bool:
        """Always false: every epoch uses the same episodes."""
        return False

    def expected(self, updates: int) -> Expected:
        """Return how much is played; it does not depend on the number of updates."""
        batch = min(self.batch or self.num_episodes, self.num_episodes)
        return Expected(
            episodes=self.num_episodes, batch=batch, acted=0 if self.policy else self.num_episodes
        )

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield one message for each number that is too small."""
        yield from too_small(self, where, num_episodes=1, batch=0)

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Return this update's share of the demonstrations.

        The first update also reports the failed attempts, and the episodes that gave no demonstration.
        """
        demonstrations = await self._demonstrations(ground, name)
        num_groups = len(demonstrations.groups)
        batch = min(self.batch, num_groups) if self.batch else num_groups
        epoch, batch_index = divmod(update, num_groups // batch)
        order = list(range(num_groups))
        random.Random(seed_of(ground.seed, name, "epoch", epoch)).shuffle(order)
        chosen = order[batch_index * batch : (batch_index + 1) * batch]
        judged, counts = await payment.judge([demonstrations.groups[index] for index in chosen])
        paid = payment.pay([group for group in judged if group])
        collected = Collected(paid, num_dropped=batch - len(paid), counts=counts)
        if update == 0:
            collected.failures = demonstrations.failures
            collected.num_dropped += self.num_episodes - num_groups
        return collected

    async def _demonstrations(self, ground: Playground, name: str) -> Played:
        """Return the stage's demonstrations; play and store them first if the run folder has none."""
        if name not in ground.demonstrations:
            path = ground.folder / "demonstrations" / f"{name}.parquet"
            if not path.exists():
                played = await self._play(ground, name)
                write_trajectories(path, played.groups, update=0, stage=name, failures=played.failures)
            stored = read_trajectories(path)
            groups: list[Group] = [(one.trajectory,) for one in stored if one.group >= 0]
            failures = [one.trajectory for one in stored if one.group < 0]
            ground.demonstrations[name] = Played(groups, failures)
        return ground.demonstrations[name]

    async def _play(self, ground: Playground, name: str) -> Played:
        tasks = ground.tasks[self.split]
        seed = seed_of(ground.seed, name)
        order = random.Random(seed_of(seed, "tasks")).sample(range(len(tasks)), len(tasks))
        draws = [
            Draw(tasks[order[index % len(tasks)]], 1, index // len(tasks))
            for index in range(self.num_episodes)
        ]
        limits = ground.limits
        if self.max_turns is not None:
            shorter = min(self.max_turns, limits.max_turns or self.max_turns)
            limits = dataclasses.replace(limits, max_turns=shorter)
        played = await play_all(
            draws,
            policy=self.policy or ground.agent,
            host=ground.host,
            seed=seed,
            limits=limits,
            on_end=ground.on_end,
        )
        _stop_if_all_failed(played, f"the demonstrations of stage {name!r}")
        trajectories = [
            ground.renderer.tokenise(trajectory) for group in played.groups for trajectory in group
        ]
        if self.only_successful:
            trajectories = [trajectory for trajectory in trajectories if trajectory.success]
        if not trajectories:
            raise ConfigError(
                f"stage {name!r} has nothing to learn from: none of {self.num_episodes} demonstrations "
                "solved its "
                "task; use a better policy, more episodes, or only_successful=False"
            )
        return Played([(trajectory,) for trajectory in trajectories], played.failures)


def _stop_if_all_failed(played: Played, where: str) -> None:
    """Raise ``EnvError`` if every episode failed: continuing would only hide the cause."""
    if played.failures and not played.groups:
        last = played.failures[-1]
        raise EnvError(
            f"every episode of {where} failed; {len(played.failures)} attempts, the last: {last.error}"
        )
