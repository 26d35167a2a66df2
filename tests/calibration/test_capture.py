from functools import partial

import pytest
import torch
from torch import nn

from calibration.capture import watch_inputs
from calibration.statistics import SHRINKAGE, Cross, Hessian, shrunk


def inputs(tokens, in_features):
    return torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_features", [1, 5, 8, 30])
def test_a_hessian_is_the_mean_of_x_x_transposed(in_features):
    x, hessian = inputs(21, in_features), Hessian(in_features)
    hessian.update(x)
    torch.testing.assert_close(hessian.value, x.T @ x / 21)
    assert torch.equal(hessian.value, hessian.value.T) and hessian.tokens == 21


def test_a_cross_statistic_is_the_mean_of_y_x_transposed():
    x, y, cross = inputs(21, 5), inputs(21, 3), Cross(3, 5)
    for rows in (slice(0, 4), slice(4, 4), slice(4, 21)):
        cross.update(y[rows], x[rows])
    torch.testing.assert_close(cross.take(), y.T @ x / 21)


@pytest.mark.parametrize("tokens", [24, 2400])
def test_shrinking_scales_all_correlations_by_one_factor(tokens):
    x = inputs(24, 6)
    mean = x.T @ x / 24
    roots = mean.diagonal().sqrt()
    plain = mean / roots / roots[:, None]
    shrunk_mean = shrunk(mean.clone(), tokens)
    roots = shrunk_mean.diagonal().sqrt()
    kept = 1 / (1 + SHRINKAGE * (6 / tokens) ** 0.5)
    torch.testing.assert_close(shrunk_mean / roots / roots[:, None], kept * plain + (1 - kept) * torch.eye(6))


def test_shrinking_does_not_depend_on_the_scale_of_the_inputs():
    x, scale = inputs(24, 6), torch.tensor([1, 3, 0.01, 40, 0.5, 7])
    mean = x.T @ x / 24
    torch.testing.assert_close(shrunk(mean / scale / scale[:, None], 24), shrunk(mean, 24) / scale / scale[:, None])


@pytest.mark.parametrize("parts", [[24], [0, 24], [1, 23], [5, 0, 19], [1] * 24])
def test_batching_of_tokens_never_changes_a_mean(parts):
    x, at_once, in_parts = inputs(24, 6), Hessian(6), Hessian(6)
    at_once.update(x.reshape(2, 3, 4, 6))
    for part in x.split(parts):
        in_parts.update(part)
    torch.testing.assert_close(in_parts.value, at_once.value)
    assert in_parts.tokens == at_once.tokens == 24


@pytest.mark.parametrize("parts", [[64], [1, 0, 63], [16] * 4])
def test_products_in_bfloat16_change_a_statistic_by_less_than_half_a_percent(parts):
    x, y = inputs(64, 12), inputs(64, 4)
    for make, tensors in ((partial(Hessian, 12), (x,)), (partial(Cross, 4, 12), (y, x))):
        exact, rounded = make(), make(matmul_dtype=torch.bfloat16)
        exact.update(*tensors)
        for part in zip(*(tensor.split(parts) for tensor in tensors), strict=True):
            rounded.update(*part)
        actual, expected = rounded.take(), exact.take()
        assert actual.dtype == torch.float32 and 0 < (actual - expected).norm() < 4e-3 * expected.norm()


def test_half_precision_inputs_are_summed_in_float32():
    x, half, single = (300 * inputs(64, 4)).half(), Hessian(4), Hessian(4)
    half.update(x)
    single.update(x.float())
    assert half.value.dtype == torch.float32 and torch.equal(half.value, single.value)


def test_inputs_of_another_width_are_an_error():
    with pytest.raises(ValueError, match="have 5 features, but 4 are expected"):
        Hessian(4).update(inputs(3, 5))


def test_statistics_follow_the_device_of_their_inputs():
    statistic = Hessian(4)
    statistic.update(torch.empty(3, 4, device="meta"))
    assert statistic.value.device.type == "meta"


def test_inputs_are_observed_by_name_and_detached():
    model, observed = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), []
    x = inputs(5, 4).requires_grad_()
    with watch_inputs({"first": model[0], "second": model[1]}, lambda name, x: observed.append((name, x))):
        model(x)
    assert [name for name, _ in observed] == ["first", "second"]
    assert torch.equal(observed[0][1], x) and torch.equal(observed[1][1], model[0](x))
    assert not any(value.requires_grad for _, value in observed)


def test_an_input_passed_by_keyword_is_observed():
    linear, observed = nn.Linear(4, 3), []
    with watch_inputs({"linear": linear}, lambda name, x: observed.append(x)):
        linear(input=torch.ones(2, 4))
        with pytest.raises(ValueError, match="linear: called without a tensor"):
            linear(3)
    assert len(observed) == 1


def test_hooks_are_removed_after_an_error():
    linear = nn.Linear(4, 3)
    with pytest.raises(RuntimeError), watch_inputs({"linear": linear}, lambda name, x: None):
        assert len(linear._forward_pre_hooks) == 1
        raise RuntimeError
    assert not linear._forward_pre_hooks


def test_hooks_are_removed_if_one_module_cannot_be_watched():
    linear = nn.Linear(4, 3)
    with pytest.raises(AttributeError), watch_inputs({"linear": linear, "nothing": None}, lambda name, x: None):
        pass
    assert not linear._forward_pre_hooks


def test_watching_never_changes_what_a_module_returns():
    linear, x = nn.Linear(4, 3), inputs(5, 4)
    expected, hessian = linear(x), Hessian(4)
    with watch_inputs({"linear": linear}, lambda name, x: hessian.update(x)):
        assert torch.equal(linear(x), expected)
    torch.testing.assert_close(hessian.value, x.T @ x / 5)
