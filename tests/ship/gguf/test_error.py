import pytest
import torch

from compress.core.errors import GateFailure
from compress.ship.gguf.error import MeasuredError


def test_the_relative_error_is_that_of_all_tensors_together():
    error = MeasuredError()
    error.add(torch.tensor([1.0, 1.1]), torch.tensor([1.0, 1.0]))
    error.add(torch.tensor([2.0]), torch.tensor([2.2]))
    row = error.row("Q8_0")
    assert row["tensors"] == 2 and row["largest_error"] == pytest.approx(0.2, abs=1e-6)
    assert row["relative_error"] == pytest.approx((0.05 / 6.84) ** 0.5, rel=1e-5)


def test_no_weights_have_no_error():
    assert MeasuredError().row("Q8_0")["relative_error"] == 0


@pytest.mark.parametrize("written", [[0.0, 0.0], [torch.nan, 1.0]])
def test_a_difference_that_is_no_rounding_fails(written):
    error = MeasuredError()
    error.add(torch.tensor(written), torch.ones(2))
    with pytest.raises(GateFailure, match="Q6_K: the relative error is"):
        error.row("Q6_K")
