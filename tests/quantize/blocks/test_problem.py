import pytest
import torch

from calibration.statistics import Hessian, shrunk
from compress.quantize.blocks.lockstep import StageInput
from compress.quantize.blocks.problem import finished, summed
from compress.quantize.methods.error_correction import Mismatch
from compress.quantize.processes import ALONE


def test_the_hessian_of_a_stage_is_shrunk_by_the_number_of_its_tokens():
    x, hessian = torch.randn(21, 4, generator=torch.Generator().manual_seed(0)), Hessian(4)
    hessian.update(x)
    torch.testing.assert_close(finished(hessian, ALONE), shrunk(x.T @ x / 21, 21))


def test_a_linear_that_no_token_reaches_is_refused():
    with pytest.raises(ValueError, match="no token of the calibration text reaches it"):
        finished(Hessian(4), ALONE)


def test_inputs_that_are_not_finite_are_refused():
    hessian = Hessian(4)
    hessian.update(torch.tensor([[1.0, 2.0, float("inf"), 0.0]]))
    with pytest.raises(ValueError, match="not finite on the calibration text"):
        finished(hessian, ALONE)


def test_aims_that_are_not_finite_are_refused():
    mismatch = Mismatch(torch.ones(2, 4))
    mismatch.update(StageInput(torch.ones(1, 3, 4)), torch.full((1, 3, 4), float("nan")))
    with pytest.raises(ValueError, match="16-bit model makes there is not finite"):
        summed(mismatch, ALONE)
