"""Sources: where the trajectories of an update come from.

``Rollouts`` lets the agent play new episodes for each update. ``Demonstrations`` lets some policy play once (an expert, random play, or the
agent with only its successes kept) and uses the same episodes again in each epoch. Both return the same paid and filtered groups, so the
rest of the loop does not depend on which it was. The other modules of this package hold sources around another one (``guided``).
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator, Sequence
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
from agentrl.types import Group, Trajectory, seed_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts(Source):
    """The agent's own episodes, ``num_groups`` tasks times ``group_size`` episodes, new for every update.

    ``refills``: how often more tasks are drawn when filters left fewer groups than asked for (dynamic sampling).
    """

    num_groups: int = 16
    group_size: int = 8
    split: str = "train"
    sampler: Sampler = field(default_factory=Uniform)
    refills: int = 0
    max_staleness: int = 0

    def expected(self, updates: int) -> Expected:
        """Return how much ``updates`` updates play, refills aside."""
        batch = self.num_groups * self.group_size
        return Expected(episodes=batch * updates, batch=batch, acted=batch * updates)

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield the numbers that are too small."""
        yield from too_small(self, where, num_groups=1, refills=0, max_staleness=0)

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Play, pay and filter, until there are enough groups or no refill is left."""
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
            _refuse_ruin(played.groups, played.failures, f"update {update} of stage {name!r}")
            judged, counts = await payment.inquire(played.groups)
            for counted, count in counts.items():
                collected.counts[counted] = collected.counts.get(counted, 0.0) + count
            scored = payment.score([group for group in judged if len(group) >= min_group], collected.gauges)
            self.sampler.observe(
                scored
            )  # also what the filters drop: that a task is too easy is news to a curriculum
            kept = payment.keep(scored)
            collected.num_dropped += len(draws) - len(kept[:missing])
            collected.failures += played.failures
            collected.groups += kept[:missing]
        collected.sampler = copy.deepcopy(self.sampler.state_dict())
        return collected


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations(Source):
    """Episodes of ``policy`` (``None``: the agent as it is when the stage begins), played once and handed out again each epoch.

    ``batch`` episodes make one update (0: all of them), in an order drawn anew for each epoch. ``only_successful`` keeps the episodes that
    solved their task. ``max_turns`` cuts episodes shorter than the environment would. What was played is kept in the run folder, so a
    resumed run trains on the very same episodes.
    """

    policy: Policy | None
    num_episodes: int
    batch: int = 0
    split: str = "train"
    only_successful: bool = False
    max_turns: int | None = None

    @property
    def max_staleness(self) -> int:
        """Demonstrations do not wait for anybody."""
        return 0

    @property
    def group_size(self) -> int:
        """Every demonstration is a group of its own."""
        return 1

    @property
    def plays_anew(self) -> bool:
        """Every epoch uses the same episodes."""
        return False

    def expected(self, updates: int) -> Expected:
        """Return how much is played, whatever the number of updates."""
        batch = min(self.batch or self.num_episodes, self.num_episodes)
        return Expected(
            episodes=self.num_episodes, batch=batch, acted=0 if self.policy else self.num_episodes
        )

    def problems(self, stage: Stage, where: str = "source.") -> Iterator[str]:
        """Yield the numbers that are too small."""
        yield from too_small(self, where, num_episodes=1, batch=0)

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Return the update's share of the demonstrations; what was lost in playing them counts in the first update."""
        if name not in ground.kept:
            path = ground.folder / "demonstrations" / f"{name}.parquet"
            if not path.exists():
                played = await self._play(ground, name)
                write_trajectories(path, played.groups, update=0, stage=name, failures=played.failures)
            stored = read_trajectories(path)
            groups: list[Group] = [(one.trajectory,) for one in stored if one.group >= 0]
            ground.kept[name] = Played(groups, [one.trajectory for one in stored if one.group < 0])
        kept = ground.kept[name]
        batch = min(self.batch or len(kept.groups), len(kept.groups))
        per_epoch = len(kept.groups) // batch
        epoch, place = divmod(update, per_epoch)
        order = list(range(len(kept.groups)))
        random.Random(seed_of(ground.seed, name, "epoch", epoch)).shuffle(order)
        chosen = [kept.groups[index] for index in order[place * batch : (place + 1) * batch]]
        judged, counts = await payment.inquire(chosen)
        paid = payment.pay([group for group in judged if group])
        if update:
            return Collected(paid, num_dropped=batch - len(paid), counts=counts)
        return Collected(
            paid, kept.failures, self.num_episodes - len(kept.groups) + batch - len(paid), counts=counts
        )

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
            limits = dataclasses.replace(
                limits, max_turns=min(self.max_turns, limits.max_turns or self.max_turns)
            )
        played = await play_all(
            draws,
            policy=self.policy or ground.agent,
            host=ground.host,
            seed=seed,
            limits=limits,
            on_end=ground.on_end,
        )
        _refuse_ruin(played.groups, played.failures, f"the demonstrations of stage {name!r}")
        trajectories = [
            ground.renderer.tokenise(trajectory) for group in played.groups for trajectory in group
        ]
        if self.only_successful:
            trajectories = [trajectory for trajectory in trajectories if trajectory.success]
        if not trajectories:
            raise ConfigError(
                f"stage {name!r} has nothing to learn from: none of {self.num_episodes} demonstrations solved its task; "
                "use a better policy, more episodes, or only_successful=False"
            )
        return Played([(trajectory,) for trajectory in trajectories], played.failures)


def _refuse_ruin(groups: Sequence[Group], failures: Sequence[Trajectory], where: str) -> None:
    """Stop where not one episode could be played: going on would only hide what is broken."""
    if failures and not groups:
        raise EnvError(
            f"every episode of {where} failed; {len(failures)} attempts, the last: {failures[-1].error}"
        )
