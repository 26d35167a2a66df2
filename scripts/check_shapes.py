"""Run the commands of distillation on Qwen2.5's shapes: python scripts/check_shapes.py

The models have the shapes of Qwen2.5-7B and 1.5B, random weights, and --blocks blocks. Their vocabularies have 152,064
and 151,936 tokens. The tokenizer is generated and has 151,665 tokens, as many as Qwen's. `init-student` cuts the 1.5B
shape out of the 7B. `capture` writes the 7B's targets with both exact codecs. `distill` trains the 1.5B for one step
from each cache. Prints seconds and peak memory of every command. If a check fails, the exit code is 1.
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
from script_options import out_option
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compress.checkpoint.gguf.importer import tokenizer_files
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
    """Write a tokenizer whose tokens are the bytes, special tokens, and tokens that no text uses: TOKENS in all."""
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
    """Write `teacher` and `student`, from the configs in recipes/configs, with `blocks` blocks each."""
    make_tokenizer(out / "tokenizer")
    for name, size in (("teacher", "7b"), ("student", "1.5b")):
        config = read_json(ROOT / f"recipes/configs/qwen2.5-{size}-instruct.json")
        config |= {"dtype": "float16", "num_hidden_layers": blocks}
        config.pop("layer_types", None)
        report(make_shape(config, out / name, out / "tokenizer", seed=len(name)))


def qcompress(name: str, log: Path, *arguments: object) -> Row:
    """Run a qcompress command. Returns its JSON row with its seconds and peak memory.

    Raises RuntimeError, with the last line of the log, if the command fails.
    """
    command = [sys.executable, "-m", "compress.cli", *map(str, arguments), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = time.perf_counter()
    with log.open("w") as stderr, log.with_suffix(".json").open("w") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{name}: {log.read_text().strip().splitlines()[-1]} (log: {log})")
    costs = {"command_seconds": round(time.perf_counter() - started, 1), "peak_gib": usage.ru_maxrss / 2**20}
    report({"name": name, **costs})
    return {"name": name, **json.loads(log.with_suffix(".json").read_text()), **costs}


def run(out: Path, seq_len: int) -> list[Row]:
    """Run init-student, then capture with each codec, then distill from each cache. Returns one row per command."""
    teacher, text = out / "teacher", ("--seq-len", seq_len)
    shape = [part for name, value in SIZES.items() for part in (f"--{name.replace('_', '-')}", value)]
    rows = [qcompress("init-student", out / "init.log", "init-student", teacher, *shape, "--out", out / "cut", *text)]
    for codec in CODECS:
        options = ("--codec", codec, "--samples", 2, "--out", out / codec)
        rows.append(qcompress(f"capture {codec}", out / f"{codec}.log", "capture", teacher, *options, *text))
    for codec in CODECS:
        options = ("--student", out / "student", "--cache", out / codec, "--steps", 1, "--batch-size", 2)
        place = ("--learning-rate", 1e-4, "--out", out / f"trained-{codec}")
        rows.append(
            qcompress(f"distill {codec}", out / f"distill-{codec}.log", "distill", teacher, *options, *place, *text)
        )
    return rows


def checks(out: Path, rows: list[Row], seq_len: int) -> list[Row]:
    """One row per check: its name, and whether it holds."""
    by_name = {row["name"]: row for row in rows}
    cut = read_json(out / "cut" / "config.json")
    sizes = {name: cut[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    hybrid = read_json(out / "hybrid" / "manifest.json")
    results: list[tuple[str, bool]] = [
        (
            "the cut student has the shape of the 1.5B",
            list(sizes.values()) == [1536, 8960, 12] and cut["num_key_value_heads"] == 2,
        ),
        ("the cut student has the teacher's vocabulary", cut["vocab_size"] == 152_064),
        ("the KL before training is finite", math.isfinite(by_name["init-student"]["kl_before"])),
        ("the hybrid cache covers only the tokenizer's tokens", hybrid["codec"]["vocab"] == TOKENS),
    ]
    for codec in CODECS:
        row = by_name[f"distill {codec}"]
        results += [
            (f"{codec}: one step lowers the KL", row["steps"] == 1 and row["kl_after"] < row["kl_before"]),
            (
                f"{codec}: a window has {seq_len - 1} targets",
                by_name[f"capture {codec}"]["tokens"] == 2 * (seq_len - 1),
            ),
            (
                f"{codec}: training keeps the rows that pad the vocabulary",
                padding_stays(out / "student", out / f"trained-{codec}"),
            ),
        ]
    return [{"name": name, "holds": holds} for name, holds in results]


def padding_stays(before: Path, after: Path) -> bool:
    """True if training changed rows of the embedding, but no row that only pads the vocabulary."""
    name = "model.embed_tokens.weight"
    old, new = (Checkpoint(path).tensor(name) for path in (before, after))
    return len(new) == 151_936 and torch.equal(old[TOKENS:], new[TOKENS:]) and not torch.equal(old, new)


@click.command(help=__doc__)
@out_option("build/check-shapes", "Folder for all outputs. An old folder is removed.")
@click.option("--blocks", type=click.IntRange(1), default=2, show_default=True, help="Blocks of both models.")
@click.option("--seq-len", type=click.IntRange(2), default=32, show_default=True, help="Tokens per window.")
@json_option
def main(out: Path, blocks: int, seq_len: int, as_json: bool) -> None:
    shutil.rmtree(out, ignore_errors=True)
    make_models(out, blocks)
    rows = run(out, seq_len)
    results = checks(out, rows, seq_len)
    if as_json:
        emit({"rows": rows, "checks": results}, as_json=True)
    else:
        emit([{key: row[key] for key in ("name", "command_seconds", "peak_gib")} for row in rows], as_json=False)
        emit(results, as_json=False)
    sys.exit(not all(row["holds"] for row in results))


if __name__ == "__main__":
    main()
