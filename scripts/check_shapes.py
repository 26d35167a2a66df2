"""The headline pair's real shapes through the real command line: python scripts/check_shapes.py

Qwen2.5-7B and 1.5B with random weights and --blocks blocks each, vocabularies of 152,064 and 151,936, and a made-up
byte-level tokenizer of 151,665 tokens, as Qwen's has. `init-student` cuts the 1.5B shape out of the 7B, `capture` keeps
what the 7B says in both exact codecs, and `distill` takes one training step of the existing 1.5B from each cache.
Prints seconds and peak memory of every command, and ends with exit code 1 when a check fails.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from make_shape import make_shape
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compress.checkpoint.gguf import tokenizer_files
from compress.checkpoint.read import Checkpoint, read_json
from compress.cli.console import emit, report
from compress.cli.options import json_option

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
TOKENS = 151_665
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 1536, "intermediate_size": 8960, "num_heads": 12, "num_kv_heads": 2}
CODECS = ("hidden", "hybrid")


def make_tokenizer(out: Path) -> None:
    """Bytes, and so many more tokens that no text uses."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fill = [f"token{number}" for number in range(TOKENS - len(alphabet) - len(specials))]
    vocab = {token: number for number, token in enumerate([*alphabet, *fill])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML)
    assert len(tokenizer) == TOKENS, len(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer_files(tokenizer, out).items():
        (out / name).write_text(text, encoding="utf-8")


def make_models(out: Path, blocks: int) -> None:
    """`teacher` and `student` of the recipes' configs, cut to `blocks`."""
    make_tokenizer(out / "tokenizer")
    for name, size in (("teacher", "7b"), ("student", "1.5b")):
        config = read_json(ROOT / f"recipes/configs/qwen2.5-{size}-instruct.json")
        config |= {"dtype": "float16", "num_hidden_layers": blocks}
        config.pop("layer_types", None)
        report(make_shape(config, out / name, out / "tokenizer", seed=len(name)))


def qcompress(name: str, log: Path, *arguments: object) -> Row:
    """The command's own row, with its seconds and peak of memory. RuntimeError with its last line when it fails."""
    command = [sys.executable, "-m", "compress.cli", *map(str, arguments), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = time.perf_counter()
    with log.open("w") as stderr, log.with_suffix(".json").open("w") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{name}: {log.read_text().strip().splitlines()[-1]} (all of it: {log})")
    costs = {"command_seconds": round(time.perf_counter() - started, 1), "peak_gib": usage.ru_maxrss / 2**20}
    report({"name": name, **costs})
    return {"name": name, **json.loads(log.with_suffix(".json").read_text()), **costs}


def run(out: Path, seq_len: int) -> list[Row]:
    """init-student, captures and one step from each, in this order."""
    teacher, text = out / "teacher", ("--seq-len", seq_len)
    shape = [part for name, value in SIZES.items() for part in (f"--{name.replace('_', '-')}", value)]
    rows = [qcompress("init-student", out / "init.log", "init-student", teacher, *shape, "--out", out / "cut", *text)]
    for codec in CODECS:
        given = ("--codec", codec, "--samples", 2, "--out", out / codec)
        rows.append(qcompress(f"capture {codec}", out / f"{codec}.log", "capture", teacher, *given, *text))
    for codec in CODECS:
        given = ("--student", out / "student", "--cache", out / codec, "--steps", 1, "--batch-size", 2)
        place = ("--learning-rate", 1e-4, "--out", out / f"trained-{codec}")
        rows.append(
            qcompress(f"distill {codec}", out / f"distill-{codec}.log", "distill", teacher, *given, *place, *text)
        )
    return rows


def checks(out: Path, rows: list[Row], seq_len: int) -> list[Row]:
    """What must hold, and whether it does."""
    by_name = {row["name"]: row for row in rows}
    cut = read_json(out / "cut" / "config.json")
    sizes = {name: cut[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    hybrid = read_json(out / "hybrid" / "manifest.json")
    found: list[tuple[str, bool]] = [
        ("the cut has the 1.5B's shape", list(sizes.values()) == [1536, 8960, 12] and cut["num_key_value_heads"] == 2),
        ("and the teacher's vocabulary", cut["vocab_size"] == 152_064),
        ("a finite KL before training", math.isfinite(by_name["init-student"]["kl_before"])),
        ("the hybrid cache covers the tokenizer's tokens alone", hybrid["codec"]["vocab"] == TOKENS),
    ]
    for codec in CODECS:
        row = by_name[f"distill {codec}"]
        found += [
            (f"{codec}: one step, with less KL after it", row["steps"] == 1 and row["kl_after"] < row["kl_before"]),
            (
                f"{codec}: all but the first of {seq_len} tokens",
                by_name[f"capture {codec}"]["tokens"] == 2 * (seq_len - 1),
            ),
            (f"{codec}: rows that pad the vocabulary stay", padding_stays(out / "student", out / f"trained-{codec}")),
        ]
    return [{"name": name, "holds": holds} for name, holds in found]


def padding_stays(before: Path, after: Path) -> bool:
    """Whether training moved rows of the embedding, but none of those that are no token."""
    name = "model.embed_tokens.weight"
    old, new = (Checkpoint(path).tensor(name) for path in (before, after))
    return len(new) == 151_936 and torch.equal(old[TOKENS:], new[TOKENS:]) and not torch.equal(old, new)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/check-shapes"), show_default=True)
@click.option("--blocks", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seq-len", type=click.IntRange(2), default=32, show_default=True)
@json_option
def main(out: Path, blocks: int, seq_len: int, as_json: bool) -> None:
    shutil.rmtree(out, ignore_errors=True)
    make_models(out, blocks)
    rows = run(out, seq_len)
    found = checks(out, rows, seq_len)
    if as_json:
        emit({"rows": rows, "checks": found}, as_json=True)
    else:
        emit([{key: row[key] for key in ("name", "command_seconds", "peak_gib")} for row in rows], as_json=False)
        emit(found, as_json=False)
    sys.exit(not all(row["holds"] for row in found))


if __name__ == "__main__":
    main()
