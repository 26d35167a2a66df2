"""How often the host may launch kernels and wait for the GPU, by stage: one more `.item()` in a loop fails here."""

from collections import Counter

import pytest
import torch

from calibration.statistics import Hessian
from compress.checkpoint.read import Checkpoint
from compress.core.grid import Scheme
from compress.distill.config import DistillConfig
from compress.distill.model import open_model
from compress.distill.text.packing import Batch
from compress.distill.training.loop import make_optimizer_step
from compress.quantize.methods import gptq, refine
from compress.quantize.methods.awq import search_scale
from tests.pretend.cuda_api import forget_accelerator

CUDA = torch.device("cuda")
SCHEME = Scheme(group_size=128)
BUDGET = {  # stage: most launches, most waits of the host
    "statistics of 8 micro-batches": (108, 0),
    "factor of a Hessian": (78, 5),
    "rounding of 512 columns": (60, 1),
    "one sweep over 512 columns": (60, 0),
    "search of AWQ's scale": (2000, 10),
}


def count(gpu, work):
    """The launches and the waits of one call of `work`, and its result."""
    gpu.reset()
    result = work()
    return sum(gpu.launches.values()), sum(gpu.waits.values()), result


def problem(columns=512, out=32):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2 * columns, columns, generator=generator), torch.randn(out, columns, generator=generator)
    return weight.to(CUDA), (x.T @ x / len(x)).to(CUDA)


def stages(gpu):
    weight, hessian = problem()
    factor = gptq.inverse_factor(hessian, 0.01)
    quantized, _ = gptq.gptq(weight, hessian, SCHEME, factor=factor)
    groups, columns = factor.order // 128, weight.T[factor.order]
    grid = quantized.scales.T, quantized.zeros.T
    batches = [torch.randn(64, 512, device=CUDA).half() for _ in range(8)]

    def update():
        statistics = Hessian(512, torch.bfloat16)
        for x in batches:
            statistics.update(x)

    return {
        "statistics of 8 micro-batches": update,
        "factor of a Hessian": lambda: gptq.inverse_factor(hessian, 0.01),
        "rounding of 512 columns": lambda: gptq.round_columns(
            columns.clone(), *grid, groups, factor.upper, 15, gptq.GPU_BLOCK_SIZE
        ),
        "one sweep over 512 columns": lambda: refine.refine(
            weight, hessian, quantized, dtype=torch.float16, matmul_dtype=torch.bfloat16, sweeps=1
        ),
        "search of AWQ's scale": lambda: search_scale(weight, hessian, SCHEME),
    }


def test_no_stage_of_rounding_exceeds_its_budget(gpu):
    counted = {name: count(gpu, work)[:2] for name, work in stages(gpu).items()}
    over = {name: counts for name, counts in counted.items() if any(map(int.__gt__, counts, BUDGET[name]))}
    assert counted.keys() == BUDGET.keys() and over == {}, (over, gpu.waits.most_common(5))


def test_the_kernels_launch_less_than_a_fiftieth_of_the_torch_loop(gpu, monkeypatch):
    work = stages(gpu)["rounding of 512 columns"]
    ours, _, codes = count(gpu, work)
    monkeypatch.setattr(gptq, "triton_kernels", lambda: None)
    theirs, _, expected = count(gpu, work)
    assert torch.equal(codes, expected)
    assert theirs > 50 * ours, (theirs, ours)


def make_step(path, size=None):
    """An optimizer step on a student in its own process, its teacher, and a batch of 4 windows."""
    forget_accelerator()
    teacher, student = (open_model(Checkpoint(path), dtype, CUDA) for dtype in (torch.float16, torch.float32))
    settings = DistillConfig(blocks=1, seq_len=32, batch_size=4, steps=2)
    step = make_optimizer_step(student, settings, 128, None, None)
    step.micro.size = size or step.micro.size
    ids = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(0))
    return step, teacher, Batch(ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("windows", [4, 1])
def test_the_host_waits_twice_in_a_distillation_step(gpu, tiny_llama, windows):
    step, teacher, batch = make_step(tiny_llama, windows)
    step.run(1, batch, teacher)
    _, waits, _ = count(gpu, lambda: step.run(2, batch, teacher))
    assert waits <= 2, gpu.waits.most_common(8)


def test_a_full_gpu_halves_the_micro_batch_and_changes_no_loss(gpu, tiny_llama):
    step, teacher, batch = make_step(tiny_llama)
    row, norm = step.run(1, batch, teacher)
    second, teacher, batch = make_step(tiny_llama)
    sizes: Counter[int] = Counter()
    work = type(second).gradients

    def limited(self, batch, teacher, size):
        sizes[size] += 1
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(self, batch, teacher, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(second), "gradients", limited)
        other, other_norm = second.run(1, batch, teacher)
    assert list(sizes) == [4, 2, 1] and second.micro.size == 1
    assert other["loss"] == pytest.approx(row["loss"], rel=1e-3) and other_norm == pytest.approx(norm, rel=1e-2)
