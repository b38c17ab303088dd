import asyncio

import broken
from hypothesis import given
from hypothesis import strategies as st

from agentrl.env import STANDARD_SIGNALS, EnvSpec, panel_hash
from agentrl.types import Task

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
TASKS = st.builds(Task, st.text(max_size=5), st.dictionaries(st.text(max_size=3), JSON, max_size=3))
PANELS = st.lists(TASKS, max_size=6, unique_by=lambda task: task.id)


@given(PANELS, st.randoms())
def test_the_order_of_a_panel_does_not_change_its_hash(tasks, random):
    shuffled = random.sample(tasks, len(tasks))
    assert panel_hash(shuffled) == panel_hash(tasks)


@given(PANELS, TASKS)
def test_another_task_changes_the_hash(tasks, task):
    assert panel_hash([*tasks, task]) != panel_hash(tasks)


def test_lists_and_tuples_are_the_same_json():
    assert panel_hash([Task("a", {"map": ("x", "y")})]) == panel_hash([Task("a", {"map": ["x", "y"]})])


def test_standard_signals_are_declared_by_default():
    assert EnvSpec.signals is STANDARD_SIGNALS
    assert set(STANDARD_SIGNALS) <= set(broken.Sound.signals)


def test_a_spec_that_shares_nothing_and_blocks_nothing_says_so():
    assert broken.Sound.blocking is False

    async def share():
        async with broken.Sound().shared() as nothing:
            return nothing

    assert asyncio.run(share()) is None
