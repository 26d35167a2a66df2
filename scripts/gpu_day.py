"""Measure the GPU paths on the day that there is a GPU: python scripts/gpu_day.py [--model FOLDER] [--tiny]

Steps, each with its seconds and its peak memory on the GPU: the kernels of rounding against the torch loops; the
chunked loss against the plain one, and its share of the card's full rate; quantizing --blocks blocks of Qwen2.5-7B's
shape with random weights; training steps from that shape to the 1.5B's; and with --model, a folder on disk, quantizing
and verifying that model. Nothing is downloaded. A step that fails has an error in its row, and the exit code is 1.
--tiny measures tiny shapes, to try every line without such a GPU.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from check_shapes import make_tokenizer
from make_shape import make_shape
from script_options import out_option

from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import read_json
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.cards import CARDS, Card
from compress.core.config import QuantizeConfig
from compress.core.device import has_bfloat16
from compress.core.gpu_kernels import triton_kernels
from compress.core.grid import Scheme, find_grid
from compress.core.scheme import SMALLEST_SCALE
from compress.distill.config import DistillConfig
from compress.distill.model import open_model, working_dtype
from compress.distill.text.packing import Batch
from compress.distill.training.loop import make_optimizer_step
from compress.evaluate.drift.job import measure_drift
from compress.evaluate.drift.settings import DriftSettings
from compress.losses import LogitSource, distill_loss
from compress.quantize.job import RunOptions, quantize_checkpoint
from compress.quantize.methods import gptq, refine

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda")
MINIMUM = {"tiny": 1, "whole": 3}  # measured training steps


class Sizes(NamedTuple):
    """The sizes of all steps. `shape` changes the configs of teacher and student, or is empty for the real shapes."""

    columns: int
    outputs: int
    tokens: int
    vocab: int
    width: int
    windows: int
    seq_len: int
    batch: int
    shape: Row


WHOLE = Sizes(3584, 18944, 4096, 151_936, 1536, 32, 512, 16, {})
SMALL_SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY = Sizes(256, 16, 32, 300, 32, 4, 32, 2, SMALL_SHAPE)


def timed(work: Callable[[], Any]) -> tuple[Any, Row]:
    """The result of `work`, and its seconds and peak memory on the GPU."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return result, {
        "seconds": round(time.perf_counter() - started, 4),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def card_of(name: str) -> Card | None:
    """The row of the table for a GPU with this name."""
    words = name.lower().replace("-", " ").split()
    return next((card for card in CARDS if all(part in words for part in card.name.split("-"))), None)


def kernels_step(sizes: Sizes) -> Row:
    """Compare the kernels' codes with those of the torch loops, on one block of columns."""
    torch.manual_seed(0)
    x = torch.randn(2 * 128, 128, device=CUDA)
    hessian, columns = x.T @ x / len(x), torch.randn(128, sizes.outputs, device=CUDA)
    scales, zeros = (part[:, 0] for part in find_grid(columns.T, Scheme(group_size=128), hessian.diagonal()))
    upper = gptq.inverse_factor(hessian, 0.01).upper
    grids = [part.expand_as(columns).contiguous() for part in (scales, zeros)]
    rows = upper / upper.diagonal()[:, None]
    compiled = triton_kernels() or gptq
    (fast, _), _ = timed(lambda: compiled.round_block(columns.clone(), *grids, rows, 15))  # compiles
    (fast, _), cost = timed(lambda: compiled.round_block(columns.clone(), *grids, rows, 15))
    (slow, _), loop = timed(lambda: gptq.round_block(columns.clone(), *grids, rows, 15))
    moved = refined_codes(compiled.move_group if compiled is not gptq else refine.move_group, fast, grids, hessian)
    expected = refined_codes(refine.move_group, fast, grids, hessian)
    return cost | {
        "triton": compiled is not gptq,
        "loop_seconds": loop["seconds"],
        "other_codes": float((fast != slow).float().mean()),
        "other_refined_codes": float((moved != expected).float().mean()),
    }


def refined_codes(move: Callable[..., None], offsets: Any, grids: list[Any], hessian: Any) -> Any:
    """The codes after one pass of refinement with the function `move`."""
    torch.manual_seed(1)  # the same errors for both functions
    scales, zeros = (part[0].clone().clamp(min=SMALLEST_SCALE) for part in grids)
    codes, error = (offsets + zeros).to(torch.uint8), torch.randn_like(offsets) * scales / 4
    energy = hessian.diagonal().contiguous()
    move(codes, error, scales, hessian @ error, hessian, energy, zeros, 15, torch.float16)
    return codes


def loss_step(sizes: Sizes, card: Card | None) -> Row:
    """Compare the chunked loss and its gradient with the plain loss, and measure its rate."""
    torch.manual_seed(0)
    weight, teacher_weight = (torch.randn(sizes.vocab, sizes.width, device=CUDA) / 16 for _ in range(2))
    hidden = torch.randn(1, sizes.tokens, sizes.width, device=CUDA, requires_grad=True)
    teacher = LogitSource(torch.randn(1, sizes.tokens, sizes.width, device=CUDA).half(), teacher_weight.half())
    labels = torch.randint(sizes.vocab, (1, sizes.tokens), device=CUDA)
    mask = torch.ones_like(labels, dtype=torch.bool)
    weight.requires_grad_()

    def run() -> Any:
        loss = distill_loss(LogitSource(hidden, weight), teacher, labels, mask, alpha=1.0).loss
        return loss, torch.autograd.grad(loss, hidden)[0]

    run()
    (loss, gradient), cost = timed(run)
    few = slice(0, 64)
    target = (teacher.hidden[0, few].float() @ teacher.weight.float().T).log_softmax(-1)
    ours = (hidden[0, few].detach() @ weight.detach().T).log_softmax(-1)
    plain = (ours.exp() - target.exp()) @ weight.detach() / sizes.tokens
    flops = 2 * 4 * sizes.tokens * sizes.vocab * sizes.width  # teacher, student, two gradients
    return cost | {
        "loss": float(loss),
        "gradient_error": float((gradient[0, few] - plain).norm() / plain.norm()),
        "share_of_full_rate": round(flops / cost["seconds"] / card.flops, 4) if card else None,
    }


def make_models(out: Path, blocks: int, shape: Row) -> None:
    """Write `teacher` and `student` with Qwen2.5's shapes and random weights."""
    make_tokenizer(out / "tokenizer")
    for name, size in (("teacher", "7b"), ("student", "1.5b")):
        config = read_json(ROOT / f"recipes/configs/qwen2.5-{size}-instruct.json")
        config |= {"dtype": "bfloat16", "num_hidden_layers": blocks} | shape
        config.pop("layer_types", None)
        make_shape(config, out / name, out / "tokenizer", seed=len(name))


def quantize_step(model: Path, out: Path, sizes: Sizes) -> Row:
    """Quantize a model; the seconds of one block are those of the job over its blocks."""
    config = QuantizeConfig(samples=sizes.windows, seq_len=sizes.seq_len)
    row, cost = timed(lambda: quantize_checkpoint(model, out, config, RunOptions(device="cuda", report=report)))
    return cost | {"bytes": row["bytes"], "mean_error": row["mean_error"], "mean_rtn_error": row["mean_rtn_error"]}


def distill_step(out: Path, sizes: Sizes, card: Card | None, steps: int) -> Row:
    """Train the student on random tokens; returns tokens per second, and the share of the card's full rate."""
    sources = [open_for_text(out / name) for name in ("teacher", "student")]
    teacher = open_model(sources[0], working_dtype(sources[0], CUDA), CUDA)
    student = open_model(sources[1], torch.float32, CUDA)
    settings = DistillConfig(
        student=str(out / "student"), seq_len=sizes.seq_len, batch_size=sizes.batch, steps=steps + 1
    )
    vocab = min(int(model.model.config.vocab_size) for model in (teacher, student))
    step = make_optimizer_step(student, settings, vocab, None, None)
    ids = torch.randint(min(vocab, 1000), (sizes.batch, sizes.seq_len))
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    step.run(1, batch, teacher)
    rows, cost = timed(lambda: [step.run(number, batch, teacher)[0] for number in range(2, steps + 2)])
    tokens = steps * ids.numel()
    small, large = (sum(p.numel() for p in model.model.parameters()) for model in (student, teacher))
    flops = tokens * (6 * small + 2 * large)
    return cost | {
        "loss": rows[-1]["loss"],
        "tokens_per_second": round(tokens / cost["seconds"], 1),
        "windows_per_pass": step.micro.size,
        "share_of_full_rate": round(flops / cost["seconds"] / card.flops, 4) if card else None,
    }


def verify_step(model: Path, candidate: Path, sizes: Sizes) -> Row:
    """The drift of a quantized model."""
    settings = DriftSettings(samples=sizes.windows, seq_len=sizes.seq_len, device="cuda")
    checkpoints = [open_for_text(path) for path in (model, candidate)]
    rows, cost = timed(lambda: measure_drift(checkpoints, settings, report))
    return cost | {"kl": rows[1]["kl"], "top1": rows[1]["top1"]}


def run_steps(steps: dict[str, Callable[[], Row]], limit: float) -> list[Row]:
    """One row per step. A step that fails, or that would start after `limit` seconds, has an `error` in its row."""
    started, rows = time.perf_counter(), []
    for name, work in steps.items():
        try:
            if time.perf_counter() - started > limit:
                raise TimeoutError(f"not started: {limit:g} seconds have passed")
            row = work()
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"[:500]}
        rows.append({"step": name, **row})
        report(rows[-1])
    return rows


@click.command(help=__doc__)
@out_option("build/gpu-day", "Folder for models and for results.json. An old folder is removed.")
@click.option("--model", type=click.Path(path_type=Path), help="A small real model on disk, to quantize and verify.")
@click.option("--blocks", type=click.IntRange(1), default=4, show_default=True, help="Blocks of the random models.")
@click.option("--limit", type=float, default=420.0, show_default=True, help="Seconds after which no step starts.")
@click.option("--tiny", is_flag=True, help="Tiny shapes instead of Qwen2.5's.")
@json_option
def main(out: Path, model: Path | None, blocks: int, limit: float, tiny: bool, as_json: bool) -> None:
    if not torch.cuda.is_available():
        raise click.ClickException("torch finds no GPU; run this on a machine that has one")
    shutil.rmtree(out, ignore_errors=True)
    sizes, name = TINY if tiny else WHOLE, torch.cuda.get_device_name()
    card = card_of(name)
    steps: dict[str, Callable[[], Row]] = {
        "kernels": partial(kernels_step, sizes),
        "loss": partial(loss_step, sizes, card),
        "write models": lambda: timed(lambda: make_models(out, blocks, sizes.shape))[1],
        f"quantize {blocks} blocks": partial(quantize_step, out / "teacher", out / "quantized", sizes),
        f"distill {blocks} blocks": partial(distill_step, out, sizes, card, MINIMUM["tiny" if tiny else "whole"]),
    }
    if model is not None:
        steps["quantize model"] = partial(quantize_step, model, out / "model-4bit", sizes)
        steps["verify model"] = partial(verify_step, model, out / "model-4bit", sizes)
    rows = run_steps(steps, limit)
    facts = {"gpu": name, "memory_bytes": torch.cuda.mem_get_info()[1], "torch": torch.__version__, "tiny": tiny}
    results = {**facts, "bfloat16": has_bfloat16(), "steps": rows}
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    emit(results if as_json else rows, as_json=as_json, title=name)
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
