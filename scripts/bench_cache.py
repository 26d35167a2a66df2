"""Measure the cache codecs with a real vocabulary: python scripts/bench_cache.py

Teacher and student are random hidden states and heads, with a small width and 151,936 tokens. Three figures are printed
for each codec: bytes per token, reading speed, and a cosine. The cosine compares the gradient of the full loss with the
mean gradient over --draws caches, each with its own random draws. For an unbiased codec it tends to 1; for topk it does
not. A large --logit-scale makes the teacher's distribution sharper and its tail lighter. The target for the reading
speed is a multiple of --training-speed, which scripts/bench_distill.py prints.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from calibration.windows import Windows
from compress.cli.console import emit
from compress.cli.options import json_option
from compress.distill.targets.cache import Cache, Manifest, open_folder, window_digests, windows_digest, write_shard
from compress.distill.targets.codecs import Codec, Hidden, Hybrid, TopK
from compress.losses import LogitSource, Targets, distill_loss

Row = dict[str, Any]
BYTES, COSINE, READING = 100, 0.999, 5


def make_side(seed: int, tokens: int, width: int, vocab: int, scale: float) -> LogitSource:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, width, generator=generator)
    return LogitSource(torch.randn(tokens, width, generator=generator) * scale / width**0.5, weight)


def gradient(student: LogitSource, targets: Targets) -> Tensor:
    """The gradient of the KL at temperature 1 with respect to the hidden states, flattened to (tokens · width,)."""
    hidden = student.hidden.clone().requires_grad_()
    labels = torch.zeros(len(hidden), dtype=torch.long)
    mask = torch.ones_like(labels, dtype=torch.bool)
    loss = distill_loss(student._replace(hidden=hidden), targets, labels, mask, alpha=1.0).loss
    return torch.autograd.grad(loss, hidden)[0].flatten().double()


def mean_cosine(student: LogitSource, teacher: LogitSource, codec: Codec, draws: int) -> Row:
    """The cosine of the full gradient with the gradient of the first draw, and with the mean over all draws."""
    full = gradient(student, teacher)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(draws, len(teacher.hidden), generator=generator, dtype=torch.float64)
    gradients = [gradient(student, codec.decode(codec.encode(teacher, number), teacher)) for number in numbers]
    mean = torch.stack(gradients).mean(0)
    return {"cosine_1": cosine(gradients[0], full), f"cosine_{draws}": cosine(mean, full)}


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def read_speed(folder: Path, name: str, codec: Codec, teacher: LogitSource, tokens: int, seq_len: int) -> Row:
    """Tokens per second of reading a whole cache from disk and decoding it.

    The first reading verifies checksums, the second one does not.
    """
    count = tokens // (seq_len - 1)
    ids = torch.arange(count * seq_len).view(count, seq_len)
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), {})
    data = {"n_samples": count, "seq_len": seq_len, "seed": 0, "start_token": None, "sources": []}
    settings = {"name": name, **vars(codec)}
    manifest = Manifest("-", "-", "-", "-", settings, data, windows_digest(windows), teacher.hidden.shape[1], 64)
    open_folder(folder, manifest)
    rows = codec.encode(teacher, torch.rand(len(teacher.hidden), dtype=torch.float64))
    digests = window_digests(ids)
    for index in range(len(manifest.files)):
        here = digests[index * 64 : (index + 1) * 64]
        filled = {key: part[torch.arange(len(here) * (seq_len - 1)) % len(part)] for key, part in rows.items()}
        ends = torch.arange(1, len(here) + 1) * (seq_len - 1)
        tensors = {f"codec.{key}": part for key, part in filled.items()} | {"ids": here, "ends": ends}
        write_shard(folder, manifest, index, tensors)
    cache, speeds = Cache(folder), []
    for _ in range(2):
        started = time.perf_counter()
        for window in range(count):
            codec.decode(cache.rows(window, digests[window]), teacher)
        speeds.append(count * (seq_len - 1) / (time.perf_counter() - started))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    stored = size / (count * (seq_len - 1))
    return {"bytes_on_disk": stored, "first_tokens_per_second": speeds[0], "tokens_per_second": speeds[1]}


def compare_targets(rows: list[Row], draws: int, training: float | None) -> list[Row]:
    """One row per target: the target, the measured value, and whether it is met."""
    by_name = {row["name"]: row for row in rows}
    cosine = f"cosine_{draws}"
    hybrid, topk = by_name["hybrid"], by_name["topk 50"]
    speed = None if training is None else hybrid["first_tokens_per_second"] / training
    targets = [
        ("hybrid: bytes per token on disk", f"<= {BYTES}", hybrid["bytes_on_disk"], hybrid["bytes_on_disk"] <= BYTES),
        (f"hybrid: cosine of the mean of {draws}", f">= {COSINE}", hybrid[cosine], hybrid[cosine] >= COSINE),
        (f"topk 50: cosine of the mean of {draws}", f"< {COSINE}", topk[cosine], topk[cosine] < COSINE),
        (
            "hybrid: first reading / training, tokens/s",
            f">= {READING}",
            speed,
            "not measured, because --training-speed is missing" if speed is None else speed >= READING,
        ),
    ]
    return [dict(zip(("name", "target", "measured", "met"), one, strict=True)) for one in targets]


@click.command()
@click.option("--vocab", default=151_936, show_default=True, help="Tokens in the vocabulary.")
@click.option("--width", default=64, show_default=True, help="Width of the hidden states.")
@click.option("--tokens", default=32, show_default=True, help="Tokens per gradient.")
@click.option("--draws", default=128, show_default=True, help="Random caches per codec; the cosine uses their mean.")
@click.option("--logit-scale", default=4.0, show_default=True, help="Standard deviation of the teacher's logits.")
@click.option("--read-tokens", default=65_536, show_default=True, help="Tokens in the cache that is read.")
@click.option("--seq-len", default=256, show_default=True, help="Tokens per window of the cache that is read.")
@click.option(
    "--training-speed", type=click.FloatRange(0, min_open=True), help="Tokens per second of training from a cache."
)
@json_option
def main(
    vocab: int,
    width: int,
    tokens: int,
    draws: int,
    logit_scale: float,
    read_tokens: int,
    seq_len: int,
    training_speed: float | None,
    as_json: bool,
) -> None:
    """Measure bytes, bias and reading speed of every codec."""
    teacher = make_side(1, tokens, width, vocab, logit_scale)
    student = make_side(2, tokens, width, vocab, logit_scale / 2)
    codecs: dict[str, tuple[str, Codec]] = {
        "hidden": ("hidden", Hidden()),
        "hybrid": ("hybrid", Hybrid(vocab)),
        "topk 50": ("topk", TopK(vocab, top_k=50)),
        "topk 50 raw": ("topk", TopK(vocab, top_k=50, renormalise=False)),
    }
    rows = []
    for label, (name, codec) in codecs.items():
        with tempfile.TemporaryDirectory() as folder:
            speed = read_speed(Path(folder) / "cache", name, codec, teacher, read_tokens, seq_len)
        row = {"name": label, "biased": codec.biased, "bytes_per_token": codec.bytes_per_token(width)}
        rows.append(row | mean_cosine(student, teacher, codec, draws) | speed)
    targets = compare_targets(rows, draws, training_speed)
    if as_json:
        emit({"rows": rows, "targets": targets}, as_json=True)
        return
    emit(rows, as_json=False)
    emit(targets, as_json=False)


if __name__ == "__main__":
    main()
