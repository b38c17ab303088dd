"""Rules and small groups with worked values that several tests of credit share."""

import strategies
from strategies import scored, trajectory

from agentrl.credit.anchors import HGPO, GiGPO
from agentrl.credit.components import GDPO, MTGRPO, EpisodeAndSteps
from agentrl.credit.strata import Stratified, num_turns
from agentrl.types import Action, End, Observation, Scored, Trajectory, Turn, floats, ints

OUTCOMES = [1.0, 0.0, 0.0, 1.0]
GROUP_RULES = [
    GiGPO(),
    GiGPO(deviation=True),
    GiGPO(stats_over="turn", similarity=0.9),
    HGPO(),
    HGPO(deviation=False, episode_weight=1.0),
    Stratified(num_turns),
    GDPO({"outcome": 1.0}),
    MTGRPO(process="outcome", outcome="outcome"),
    EpisodeAndSteps(process="outcome"),
]


def walk(places: str, rewards: list[float]) -> Scored:
    return scored(rewards, observations=list(places))


def componentwise(*rows: dict[str, list[float]], signals: list[list[dict[str, float]]] | None = None):
    found = []
    for i, row in enumerate(rows):
        num = len(next(iter(row.values())))
        record = trajectory([1] * num, signals=signals[i] if signals else None)
        found.append(Scored(record, {name: floats(paid) for name, paid in row.items()}))
    return tuple(found)


GIGPO = (walk("012", [0, 0, 1]), walk("03", [0, 0]), walk("014", [0, 0, 0]))
HGPO_WALKS = (walk("012", [0, 0, 1]), walk("031", [0, 0, 0.5]), walk("014", [0, 0, 0]))
MT = [
    {"tool": [turn, 0.0], "outcome": [0.0, outcome]}
    for turn, outcome in zip([0.2, 0.0, 0.2, 0.1], OUTCOMES, strict=True)
]


def timed(seconds: list[float]) -> Scored:
    turns = tuple(
        Turn(Observation.text("o"), Action("a", ints(), ints([1]), floats([-1.0])), duration_s=s)
        for s in seconds
    )
    return Scored(
        Trajectory(strategies.trajectory([1]).task, turns, End.TERMINATED),
        {"outcome": floats([0.0] * len(turns))},
    )
