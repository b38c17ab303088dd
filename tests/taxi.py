"""Gymnasium's Taxi as an agentrl environment. Worker processes can import this module."""

from typing import Any

import gymnasium

from agentrl.env.gym_text import GymEnv, GymText

PLACES = ("red", "green", "yellow", "blue", "taxi")


def render_taxi(env: GymEnv, state: Any) -> str:
    """Describe where the taxi, the passenger and the destination are."""
    row, column, passenger, destination = env.unwrapped.decode(state)  # type: ignore[attr-defined]
    where = f"taxi at row {row} column {column} . passenger in {PLACES[passenger]}"
    return f"{where} . bring to {PLACES[destination]}"


TAXI = GymText(
    env_id=max(name for name in gymnasium.registry if name.startswith("Taxi-v")),
    actions=("south", "north", "east", "west", "pickup", "dropoff"),
    render=render_taxi,
    max_turns=12,
    num_tasks=20,
)
