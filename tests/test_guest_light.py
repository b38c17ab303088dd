"""The guest's own JSON functions agree with the standard library's."""

import json

from agentrl_sandboxes.guest.light import dumps, loads
from hypothesis import given
from hypothesis import strategies as st

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(values)
def test_what_one_side_writes_the_other_reads(value):
    assert loads(json.dumps(value)) == value
    assert json.loads(dumps(value)) == value


@given(values)
def test_tuples_are_lists(value):
    assert json.loads(dumps((value, value))) == [value, value]
