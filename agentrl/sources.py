"""Sources: where the trajectories of an update come from.

``Rollouts`` plays the agent itself, anew for each update. ``Demonstrations`` plays some policy once (an expert, random play, or the agent
with only its successes kept) and hands out the same episodes epoch after epoch. Both end in the same paid and filtered groups, so what
follows need not know which it was.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from agentrl.errors import ConfigError, EnvError, Unjudged
from agentrl.policy import Policy
from agentrl.render import Renderer
from agentrl.rewards import Gauged, Inquiring, Reward, Transform, sound
from agentrl.rollout import Host, Limits, Played, play_all
from agentrl.samplers import Draw, Filter, Sampler
from agentrl.samplers.uniform import Uniform
from agentrl.store import read_trajectories, write_trajectories
from agentrl.types import Group, Json, Ledger, Remembering, Scored, ScoredGroup, Task, Trajectory, seed_of

if TYPE_CHECKING:
    from agentrl.recipe import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Playground:
    """What a source plays with: opened once by the run, the same for every stage."""

    agent: Policy
    host: Host
    renderer: Renderer
    tasks: Callable[[str], Sequence[Task]]
    limits: Limits
    seed: int
    folder: Path
    on_end: Callable[[Trajectory], None] = lambda _: None
    at: Callable[[float], Policy] | None = None
    """The agent at another temperature."""
    kept: dict[str, Played] = field(default_factory=dict)
    """Demonstrations by stage, as they were read from the run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """How trajectories become paid groups: a reward, then transforms of its ledger, then filters over groups."""

    reward: Reward
    transforms: tuple[Transform, ...] = ()
    filters: tuple[Filter, ...] = ()

    def pay(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Return the groups with their ledgers, and only those that every filter keeps."""
        return self.keep(self.score(groups))

    async def inquire(self, groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
        """Let the reward ask whoever it has to; return the groups without the episodes that nobody could judge, and counts."""
        if not isinstance(self.reward, Inquiring):
            return list(groups), {}
        counts = dict(await self.reward.ask(groups))
        judged = [tuple(trajectory for trajectory in group if self._judged(trajectory)) for group in groups]
        if counts:
            counts["judge/unjudged"] = float(sum(map(len, groups)) - sum(map(len, judged)))
        return judged, counts

    def _judged(self, trajectory: Trajectory) -> bool:
        try:
            self.reward(trajectory)
        except Unjudged:
            return False
        return True

    def score(self, groups: Sequence[Group], gauges: Gauges | None = None) -> list[ScoredGroup]:
        """Return the groups with their ledgers; what transforms tell of their decisions is added to ``gauges``."""
        return [
            tuple(Scored(trajectory, self._ledger(trajectory, gauges)) for trajectory in group)
            for group in groups
        ]

    def keep(self, scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return what every filter keeps."""
        kept = list(scored)
        for chosen in self.filters:
            kept = chosen(kept)
        return kept

    @property
    def remembering(self) -> list[Remembering]:
        """The transforms that learn from update to update."""
        return [transform for transform in self.transforms if isinstance(transform, Remembering)]

    def observe(self, gauges: Gauges) -> list[Mapping[str, Json]]:
        """Show the transforms that remember an update's gauges, once all of it is paid; return what they remember then."""
        means = {name: fmean(values) for name, values in gauges.items()}
        for transform in self.remembering:
            transform.observe(means)
        return self.memory()

    def memory(self) -> list[Mapping[str, Json]]:
        """Return what the transforms remember, as ``recall`` takes it back."""
        return [copy.deepcopy(transform.state_dict()) for transform in self.remembering]

    def recall(self, memory: Sequence[Mapping[str, Json]]) -> None:
        """Take back what the transforms remembered."""
        for transform, state in zip(self.remembering, memory, strict=True):
            transform.load_state_dict(state)

    def _ledger(self, trajectory: Trajectory, gauges: Gauges | None) -> Ledger:
        ledger = self.reward(trajectory)
        for transform in self.transforms:
            if gauges is not None and isinstance(transform, Gauged):
                for name, value in transform.gauge(trajectory, ledger).items():
                    gauges.setdefault(name, []).append(value)
            ledger = transform(trajectory, ledger)
        return sound(ledger, trajectory)


Gauges = dict[str, list[float]]
"""What transforms told, one number for each episode."""


@dataclass(slots=True)
class Collected:
    """An update's groups, and what did not become one: counted, never silent."""

    groups: list[ScoredGroup] = field(default_factory=list)
    failures: list[Trajectory] = field(default_factory=list)
    num_dropped: int = 0
    """Groups that were played and are not among ``groups``: dropped by a filter, left with too few episodes, or more than asked for."""
    gauges: Gauges = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    """Metrics that the reward counted while it asked."""
    sampler: Mapping[str, Json] = field(default_factory=dict)
    """State of the sampler once it had observed these groups, and none that were played ahead: a resumed run goes on from here."""
    transforms: Sequence[Mapping[str, Json]] = ()
    """The same of the transforms that remember."""


class Source(Protocol):
    """Brings an update's paid groups."""

    @property
    def split(self) -> str:
        """The tasks it plays."""
        ...

    @property
    def max_staleness(self) -> int:
        """Updates that episodes may be ahead of: 0 where playing waits for learning."""
        ...

    @property
    def group_size(self) -> int:
        """Episodes of a task within an update."""
        ...

    async def collect(
        self, ground: Playground, payment: Payment, *, name: str, update: int, min_group: int
    ) -> Collected:
        """Return the groups of the stage's ``update``-th update, counted from 0; ``name`` is the stage's."""
        ...


@runtime_checkable
class Guiding(Protocol):
    """A source around another one, such as those of ``agentrl.guidance``."""

    filters_last: ClassVar[bool]
    """Whether filters act after it, so that the source within has none."""

    @property
    def source(self) -> Source:
        """The source within."""
        ...

    def problems(self, stage: Stage) -> Iterator[str]:
        """Yield what of ``stage`` does not go with it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """The agent's own episodes, ``num_groups`` tasks times ``group_size`` episodes, new for every update.

    ``refills``: how often more tasks are drawn when filters left fewer groups than asked for (dynamic sampling).
    """

    num_groups: int = 16
    group_size: int = 8
    split: str = "train"
    sampler: Sampler = field(default_factory=Uniform)
    refills: int = 0
    max_staleness: int = 0

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
            turn = update * (self.refills + 1) + refill
            draws = self.sampler.draw(
                ground.tasks(self.split),
                update=turn,
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
class Demonstrations:
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
        tasks = ground.tasks(self.split)
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
