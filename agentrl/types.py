"""What flows through agentrl: frozen records, from the task to the advantages of its trajectories.

```
Task -> Observation -> Action -> Step -> Turn, Turn, ... -> Trajectory -> Scored (with a ledger) -> Credited
```

Axes of arrays: ``N`` the turns of a trajectory, ``T`` its action tokens (sampled tokens only, all turns
concatenated). This module imports only numpy. Records hold tuples and read-only arrays, so they can be
shared, pickled and replayed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Json = bool | int | float | str | None | Sequence["Json"] | Mapping[str, "Json"]
Network = Literal["none", "open"]
"""The network of a sandbox. With ``none`` there is only the loopback interface inside; with ``open`` the
outside can be reached, which few back ends allow."""
Role = Literal["system", "user", "assistant", "tool"]
Need = Literal["values", "entropies", "old_logprobs", "ref_logprobs", "teacher_logprobs"]
"""A measurement on action tokens that a part of the recipe asks for; only the forward passes that are needed
are run."""
NEEDS: tuple[Need, ...] = get_args(Need)
Array = TypeVar("Array")
Ledger = Mapping[str, FloatArray]
"""What a trajectory is paid: for each named component, one number per turn, ``[N]``."""


def ints(values: Sequence[int] | IntArray = ()) -> IntArray:
    """Return ``values`` as a read-only ``int32`` array."""
    array = np.array(values, dtype=np.int32)
    array.setflags(write=False)
    return array


def floats(values: Sequence[float] | npt.NDArray[np.floating] = ()) -> FloatArray:
    """Return ``values`` as a read-only ``float32`` array."""
    array = np.array(values, dtype=np.float32)
    array.setflags(write=False)
    return array


def seed_of(*parts: object) -> int:
    """Derive a 63-bit seed from named parts, the same on every machine, process and Python version.

    Every random source in agentrl is a generator that is seeded this way, never by worker number, order or
    time.

    >>> seed_of(0, "task-a", 3) == seed_of(0, "task-a", 3) != seed_of(0, "task-a", 4)
    True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; ``images`` are PNG files."""

    role: Role
    content: str
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a task asks of its sandbox.

    By default there is no network and limits are small. A spec is hashable; pools use it as a key.
    """

    image: str = ""
    """Name of the root file system; if it is empty, the provider's base image is used."""
    workdir: str = "/workspace"
    """Where commands start; created if the image lacks it; always writable."""
    writable: tuple[str, ...] = ()
    """More folders of the image that must be writable. They count against ``disk_mib``; what the
    image has in them stays there."""
    cpus: float = 1.0
    memory_mib: int = 1024
    disk_mib: int = 512
    """Limit on everything that is written, over all writable folders together."""
    num_processes: int = 256
    num_files: int = 1024
    """Maximum number of open file descriptors of one process."""
    lifetime_s: float = 3600.0
    """The sandbox ends itself after this long, even if it is still in use."""
    network: Network = "none"


@dataclass(frozen=True, slots=True)
class Task:
    """One problem.

    An environment is a deterministic function of its task: ``data`` determines every random choice.

    ``data`` is JSON. Its author knows the type of each value, so it is read without casts: ``seed: int =
    task.data["seed"]``.
    """

    id: str
    data: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON that the environment's author knows
    sandbox: SandboxSpec | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What an environment shows before an action.

    Only ``messages`` are shown to a language model. ``actions`` lists every admissible action, if the
    environment can list them; random play and constrained decoding use it. ``plan`` is what an expert would
    do from here. It is privileged: demonstrations and teachers use it, and it is never rendered into a
    prompt.

    >>> Observation.text("you see a door", actions=("open door", "wait"))  # doctest: +ELLIPSIS
    Observation(messages=(...), actions=('open door', 'wait'), plan=())
    """

    messages: tuple[Message, ...]
    actions: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()

    @classmethod
    def text(cls, content: str, *, actions: tuple[str, ...] = (), plan: tuple[str, ...] = ()) -> Observation:
        """Return an observation that is one user message."""
        return cls((Message("user", content),), actions, plan)


@dataclass(frozen=True, slots=True)
class Step:
    """What an environment returns for an action.

    ``info`` holds signals: measured numbers that are not yet rewards.

    ``terminated``: the task itself ended. ``truncated``: a limit ended the episode. A broken environment
    raises an error instead.
    """

    observation: Observation
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Action:
    """What a policy did, as text and as tokens.

    ``prompt`` is the *delta*: the context tokens that were added since the last action's tokens. ``tokens``
    were sampled by the weights of ``version``; ``logprobs`` are their log-probabilities (nats) under the
    distribution that was sampled from, after temperature and truncation. ``fresh``: the policy rewrote its
    context, so ``prompt`` is the whole context and a new segment starts. ``clipped``: the token limit ended
    the action, not the policy. A policy that is not a language model leaves the arrays empty and ``version``
    at -1.

    A context, over two turns: ``prompt0 + tokens0 + prompt1 + tokens1``.
    """

    text: str
    prompt: IntArray = field(default_factory=ints)
    tokens: IntArray = field(default_factory=ints)
    logprobs: FloatArray = field(default_factory=floats)
    version: int = -1
    fresh: bool = False
    clipped: bool = False

    def __post_init__(self) -> None:
        if self.tokens.shape != self.logprobs.shape or self.tokens.ndim != 1:
            raise ValueError(
                f"an action needs one log-probability per token: {self.tokens.shape} tokens, "
                f"{self.logprobs.shape} logprobs"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Action):
            return NotImplemented
        return (self.text, self.version, self.fresh, self.clipped) == (
            other.text,
            other.version,
            other.fresh,
            other.clipped,
        ) and all(
            np.array_equal(mine, theirs)
            for mine, theirs in (
                (self.prompt, other.prompt),
                (self.tokens, other.tokens),
                (self.logprobs, other.logprobs),
            )
        )

    def __hash__(self) -> int:
        return hash((self.text, self.version, self.tokens.tobytes()))


@dataclass(frozen=True, slots=True)
class Turn:
    """An observation, the action taken on it, and the environment's reward and signals.

    ``duration_s`` is the wall-clock time of acting and stepping.
    """

    observation: Observation
    action: Action
    reward: float = 0.0
    info: Mapping[str, float] = field(default_factory=dict)
    duration_s: float = field(default=0.0, compare=False)


class End(StrEnum):
    """Why an episode ended.

    ``FAILED``: the environment, the sandbox or the policy broke; such an episode is never paid 0.
    """

    TERMINATED = "terminated"
    TRUNCATED = "truncated"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The record of one episode.

    ``sample`` numbers the episodes of one task in a stage; an episode that replaces another has a negative
    number (``stand_in``). ``final`` is the last observation.
    """

    task: Task
    turns: tuple[Turn, ...]
    end: End
    sample: int = 0
    error: str = ""
    final: Observation | None = None

    @property
    def success(self) -> bool:
        """Whether the environment's ``success`` signal was positive on the last turn."""
        return bool(self.turns) and self.turns[-1].info.get("success", 0.0) > 0.0

    @property
    def num_tokens(self) -> int:
        """Number of sampled tokens, over all turns (``T``)."""
        return sum(len(turn.action.tokens) for turn in self.turns)

    @property
    def given(self) -> bool:
        """Whether any tokens were given to the agent instead of being sampled from this very context.

        This holds for demonstrations, and for what the agent said to another prompt or at another
        temperature. Given tokens have version -1. No sampler's log-probabilities belong to them, so ratios of
        probabilities are meaningless for them.
        """
        return any(len(turn.action.tokens) > 0 and turn.action.version < 0 for turn in self.turns)

    def signal(self, name: str) -> FloatArray:
        """Return a signal of each turn, ``[N]``; 0 for a turn that did not report it."""
        return floats([turn.info.get(name, 0.0) for turn in self.turns])


Group = tuple[Trajectory, ...]
"""Trajectories of the same task, whose rewards may be compared with each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured(Generic[Array]):
    """What the learner measured on action tokens, each ``None`` unless a part of the recipe needs it.

    The fields are the names of ``Need``. Every array has one number per action token, ``[T]`` of a trajectory
    or ``[A]`` of a batch. ``values``: the critic's value of the state *before* the token. ``entropies``: in
    nats, over the whole vocabulary. ``old_logprobs``: under the learner's weights at the start of the update.
    ``ref_logprobs``: under the reference model. ``teacher_logprobs``: under the stage's teacher.
    """

    values: Array | None = None
    entropies: Array | None = None
    old_logprobs: Array | None = None
    ref_logprobs: Array | None = None
    teacher_logprobs: Array | None = None

    def get(self, need: Need) -> Array | None:
        """Return the measurement with the name ``need``, or ``None`` if it was not made."""
        found: Array | None = getattr(self, need)
        return found

    def known(self) -> dict[Need, Array]:
        """Return the measurements that were made, by name."""
        return {need: array for need in NEEDS if (array := self.get(need)) is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A trajectory with its ledger, and what the learner measured on its action tokens, ``[T]``."""

    trajectory: Trajectory
    ledger: Ledger
    measured: Measured[FloatArray] = Measured()

    def with_measured(self, **arrays: FloatArray | None) -> Scored:
        """Return this record with further measurements ``arrays``, by their names in ``Measured``."""
        return replace(self, measured=replace(self.measured, **arrays))

    @property
    def rewards_N(self) -> npt.NDArray[np.float64]:
        """Sum of the ledger's components, one number per turn."""
        total = np.zeros(len(self.trajectory.turns))
        for component in self.ledger.values():
            total += component
        return total

    @property
    def num_tokens_N(self) -> IntArray:
        """Number of action tokens of each turn."""
        return ints([len(turn.action.tokens) for turn in self.trajectory.turns])


ScoredGroup = tuple[Scored, ...]


def is_given(group: ScoredGroup) -> bool:
    """Return whether every trajectory of the group has given tokens (``Trajectory.given``)."""
    return all(scored.trajectory.given for scored in group)


def stand_in(sample: int) -> int:
    """Return the number of the episode that replaces episode ``sample``.

    Applied twice, it returns ``sample``.

    >>> stand_in(0), stand_in(7), stand_in(stand_in(7))
    (-1, -8, 7)
    """
    return -1 - sample


@dataclass(frozen=True, slots=True, eq=False)
class Credited:
    """What credit assigned to one trajectory: an advantage per action token, and the critic's targets.

    Both arrays have one number per action token, ``[T]``; the target is NaN for a token without a target.
    """

    advantages_T: FloatArray
    targets_T: FloatArray | None = None
