import pytest
import torch

from calibration.statistics import Hessian, shrunk
from compress.quantize.blocks.problem import reduced_covariance, reduced_hessian
from compress.quantize.methods.error_correction import ErrorCovariance, StageInput
from compress.quantize.processes import ALONE


def test_the_hessian_of_a_stage_is_shrunk_by_its_number_of_tokens():
    x, hessian = torch.randn(21, 4, generator=torch.Generator().manual_seed(0)), Hessian(4)
    hessian.update(x)
    torch.testing.assert_close(reduced_hessian(hessian, ALONE), shrunk(x.T @ x / 21, 21))


def test_a_linear_that_no_token_reaches_is_refused():
    with pytest.raises(ValueError, match="no token of the calibration text reaches this linear"):
        reduced_hessian(Hessian(4), ALONE)


def test_inputs_that_are_not_finite_are_refused():
    hessian = Hessian(4)
    hessian.update(torch.tensor([[1.0, 2.0, float("inf"), 0.0]]))
    with pytest.raises(ValueError, match="inputs are NaN or infinite"):
        reduced_hessian(hessian, ALONE)


def test_reference_outputs_that_are_not_finite_are_refused():
    covariance = ErrorCovariance(torch.ones(2, 4))
    covariance.update(StageInput(torch.ones(1, 3, 4)), torch.full((1, 3, 4), float("nan")))
    with pytest.raises(ValueError, match="16-bit model's outputs are NaN or infinite"):
        reduced_covariance(covariance, ALONE)
