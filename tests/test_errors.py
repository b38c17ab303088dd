import asyncio
import pickle

import pytest

from agentrl import errors
from agentrl.errors import AgentRLError, ConfigError, EnvError, boundary

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AgentRLError)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_in_the_drawn_tree_and_has_a_docstring(kind):
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_the_way_out_of_a_worker(kind):
    problem = pickle.loads(pickle.dumps(kind("what was wrong")))
    assert type(problem) is kind
    assert str(problem) == "what was wrong"


def test_a_boundary_names_what_it_guards_and_keeps_the_cause():
    with (
        pytest.raises(EnvError, match="step of 'maze' raised KeyError: 'door'") as caught,
        boundary(EnvError, "step of 'maze'"),
    ):
        raise KeyError("door")
    assert isinstance(caught.value.__cause__, KeyError)


def test_our_own_errors_pass_a_boundary_unchanged():
    with pytest.raises(ConfigError, match=r"^mine$"), boundary(EnvError, "step"):
        raise ConfigError("mine")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
def test_what_stops_a_program_passes_a_boundary(kind):
    with pytest.raises(kind), boundary(EnvError, "step"):
        raise kind
