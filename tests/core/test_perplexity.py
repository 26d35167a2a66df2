import math

import pytest
import torch

from compress.core.perplexity import Estimate, exponential, next_token_nll, window_mean


@pytest.fixture
def values():
    """Nats of 600 tokens from 20 windows of 30, each window with an individual level."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(20, 1, generator=generator)
    return (3 + levels + torch.randn(20, 30, generator=generator)).flatten(), torch.arange(20).repeat_interleave(30)


def test_equal_windows_give_the_standard_error_of_their_means(values):
    nll, window = values
    means = nll.view(20, 30).double().mean(1)
    estimate = window_mean(nll, window)
    assert estimate.value == pytest.approx(means.mean().item())
    assert estimate.se == pytest.approx(means.std().item() / math.sqrt(20))


def test_repeated_tokens_never_lower_the_standard_error(values):
    nll, window = values
    once, twice = window_mean(nll, window), window_mean(nll.repeat(2), window.repeat(2))
    assert twice.value == pytest.approx(once.value) and twice.se == pytest.approx(once.se)


def test_the_standard_error_matches_the_scatter_of_repeated_samples():
    generator = torch.Generator().manual_seed(1)
    means, errors = [], []
    for _ in range(300):
        lengths = torch.randint(1, 40, (25,), generator=generator)  # windows of different length
        levels = torch.randn(25, generator=generator).repeat_interleave(lengths)
        nll = levels + torch.randn(len(levels), generator=generator)
        estimate = window_mean(nll, torch.arange(25).repeat_interleave(lengths))
        means.append(estimate.value)
        errors.append(estimate.se)
    scatter = torch.tensor(means).std().item()
    assert sum(errors) / len(errors) == pytest.approx(scatter, rel=0.15)


def test_windows_without_a_scored_token_change_nothing(values):
    nll, window = values
    assert window_mean(nll, 3 * window + 2) == window_mean(nll, window)


def test_one_window_has_no_standard_error():
    assert window_mean(torch.ones(7), torch.full((7,), 4)) == Estimate(1.0, None)


def test_a_mean_over_0_tokens_is_rejected():
    with pytest.raises(ValueError, match="0 tokens"):
        window_mean(torch.ones(0), torch.ones(0, dtype=torch.int64))


def test_exp_scales_the_standard_error_by_its_slope():
    estimate = exponential(Estimate(2.0, 0.01))
    step = (math.exp(2.001) - math.exp(1.999)) / 0.002
    assert estimate.value == math.exp(2.0) and estimate.se == pytest.approx(0.01 * step, rel=1e-5)
    assert exponential(Estimate(0.0, None)) == Estimate(1.0, None)


def test_an_overflowing_perplexity_is_rejected():
    with pytest.raises(ValueError, match="800 nats"):
        exponential(Estimate(800.0, None))


def test_nll_is_minus_the_log_probability_of_the_next_token():
    log_probs = torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log()
    torch.testing.assert_close(next_token_nll(log_probs, torch.tensor([1, 0])), -torch.tensor([0.8, 0.5]).log())
