import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.engines.sampling import draw, log_distribution, uniforms
from agentrl.policy import Sampling


def reference(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution from its definition, in float64, token by token."""
    if sampling.temperature == 0.0:
        return (np.arange(len(logits)) == logits.argmax()).astype(np.float64)
    probabilities = np.exp(logits.astype(np.float64) / sampling.temperature)
    probabilities /= probabilities.sum()
    order = sorted(range(len(logits)), key=lambda token: (-probabilities[token], token))
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, mass, kept = probabilities[order].sum(), 0.0, []
    for token in order:
        if kept and mass >= sampling.top_p:
            break
        kept.append(token)
        mass += probabilities[token] / total
    result = np.zeros(len(logits))
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.55, 0.05]),
)


@settings(deadline=None)
@given(st.lists(samplings, min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_rows_of_any_samplings_have_the_distributions_of_the_definition(rows, seed):
    logits = np.random.default_rng(seed).normal(size=(len(rows), 12)).astype(np.float32) * 2
    found = log_distribution(torch.from_numpy(logits), rows).exp().numpy()
    np.testing.assert_allclose(
        found, [reference(row, sampling) for row, sampling in zip(logits, rows, strict=True)], atol=1e-5
    )


def test_a_row_does_not_depend_on_its_neighbours():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    rows = [
        Sampling(),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=0.0),
        Sampling(top_k=4),
        Sampling(temperature=0.3),
    ]
    together = log_distribution(logits, rows)
    for row, sampling in enumerate(rows):
        assert torch.equal(together[row], log_distribution(logits[row : row + 1], [sampling])[0])


def test_draws_have_the_frequencies_of_the_distribution():
    logprobs = torch.log_softmax(torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -1.0]]), dim=-1)
    number = 20_000
    seeds = np.arange(number, dtype=np.uint64)
    tokens, drawn = draw(logprobs.expand(number, -1), uniforms(seeds, np.full(number, 3, np.uint64)))
    shares = np.bincount(tokens, minlength=5) / number
    wanted = logprobs[0].exp().numpy()
    assert shares[2] == 0
    assert np.abs(shares - wanted).max() < 4 * np.sqrt(0.25 / number)
    np.testing.assert_array_equal(drawn, logprobs[0].numpy()[tokens])


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (np.nextafter(0.25, 0), 1), (0.25, 3), (1 - 2.0**-53, 3)])
def test_the_edges_of_the_unit_interval_never_draw_the_impossible(u, token):
    logprobs = torch.tensor(
        [[-torch.inf, np.log(0.25), -torch.inf, np.log(0.75), -torch.inf]], dtype=torch.float64
    )
    assert draw(logprobs, np.array([u]))[0] == [token]


def test_uniform_numbers_are_uniform_and_a_function_of_seed_and_counter():
    seeds, counters = (
        array.ravel().astype(np.uint64) for array in np.meshgrid(np.arange(200), np.arange(200))
    )
    numbers = uniforms(seeds, counters)
    assert len(np.unique(numbers)) == len(numbers)
    assert np.abs(np.histogram(numbers, bins=20, range=(0, 1))[0] / len(numbers) - 0.05).max() < 0.006
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    assert numbers[777] == uniforms(seeds[777:778], counters[777:778])[0]
