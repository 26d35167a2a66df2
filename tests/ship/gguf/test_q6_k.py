import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from compress.ship.gguf.q6_k import quantize_q6_k


def back(values):
    return torch.from_numpy(dequantize(quantize_q6_k(values).numpy(), GGMLQuantizationType.Q6_K))


def grid_values():
    """Weights that Q6_K holds exactly: each group has the code -32, and a scale that is an int8 multiple of d."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-32, 32, (6, 2, 16, 16), generator=generator).float()
    codes[..., 3] = -32
    factors = torch.randint(1, 128, (6, 2, 16, 1), generator=generator).float()
    factors[:, :, 5] = -128
    return (codes * factors / 4096).flatten(1)


def test_gguf_reads_weights_on_the_grid_back_bit_by_bit():
    values = grid_values()
    assert torch.equal(back(values), values)


def test_each_weight_is_within_a_step_of_its_group():
    values = torch.randn(40, 512, generator=torch.Generator().manual_seed(2))
    steps = values.unflatten(1, (-1, 16)).abs().amax(-1, keepdim=True) / 30
    assert ((back(values) - values).unflatten(1, (-1, 16)).abs() <= 1.1 * steps).all()
    assert (back(values) - values).norm() < 0.018 * values.norm()


def test_zeros_stay_zeros():
    values = torch.randn(2, 512, generator=torch.Generator().manual_seed(3))
    values[0], values[1, :16] = 0, 0
    assert (back(values)[values == 0] == 0).all()
