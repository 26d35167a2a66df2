"""Damage tiny checkpoints in hundreds of ways and count what `qcompress check` notices: python scripts/check_wounds.py

Each wound is checked twice: with the digests that were stored when the checkpoint was written, and as if another tool
had written it, without digests and record but with --source. A wound is noticed if it causes a finding that the
healthy checkpoint lacks. The kinds are in wound_kinds.py.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from wound_kinds import KINDS
from wounds import Patient

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import RECORD
from compress.checkpoint.record import DIGESTS
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.cli.console import emit
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.quantize.auto import quantize

Row = dict[str, Any]
Finding = tuple[str, str, str]
Case = tuple[str, str, str, int]
LAYOUTS = {"awq": "awq+gptq", "gptq": "gptq", "compressed-tensors": "rtn"}  # layout -> method
SPECIAL = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
TEXT = "the quick brown fox jumps over the lazy dog; a model answers the question that the user asks in a few words"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
REASONS = {  # kind -> why it cannot be noticed without digests
    "the lowest bit of one code": "one step of one weight: gptq moves single weights further than that",
    "the highest bit of one code": "eight steps of one weight: gptq moves single weights further than that",
    "64 bytes of zeros": "one input of one linear: gptq gives inputs that are always near 0 any weights",
}


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 128 tokens, trained on `text`."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ascii_text = "".join(map(chr, [9, 10, *range(32, 127)]))
    letters = sorted({letter for word, _ in backend.pre_tokenizer.pre_tokenize_str(ascii_text) for letter in word})
    trainer = trainers.BpeTrainer(vocab_size=128, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    backend.train_from_iterator([text], trainer)
    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **tokens)


@torch.no_grad()
def make_source(out: Path, seed: int, text: str) -> Path:
    """A plain float16 Qwen2 with random weights, norms and biases, and all prompt files."""
    tokenizer = make_tokenizer(text)
    ids = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 3}
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    config = Qwen2Config(
        vocab_size=128,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        **SIZES,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(("norm" in name) + 0.1 * torch.randn(parameter.shape, generator=generator))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {file.name: file.read_text(encoding="utf-8") for file in Path(folder).iterdir()}
    settings = json.loads(files["tokenizer_config.json"]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    files["tokenizer_config.json"] = json.dumps(settings, indent=2)
    files["generation_config.json"] = json.dumps(ids | {"temperature": 0.7, "top_p": 0.9}, indent=2)
    values = config.to_dict() | {"architectures": ["Qwen2ForCausalLM"], "dtype": "float16"}
    halves = {name: parameter.half() for name, parameter in model.named_parameters()}
    pairs = [(TensorSpec.of(name, half), half) for name, half in halves.items()]
    save_checkpoint(out, json.loads(json.dumps(values, default=str)), pairs, extra=files)
    return out


def make_patients(folder: Path) -> dict[str, Path]:
    """The healthy checkpoints by name: two sources, and each layout of both."""
    paths = {"source": make_source(folder / "source", 1, TEXT), "other": make_source(folder / "other", 2, TEXT[::-1])}
    for layout, method in LAYOUTS.items():
        for source in ("source", "other"):
            out = folder / f"{source}-{layout}"
            config = QuantizeConfig(method=method, format=layout, group_size=32, samples=4, seq_len=64)
            quantize(paths[source], out, config)
            paths[f"{source}-{layout}"] = out
    return paths


@dataclass(frozen=True)
class Clinic:
    """The healthy checkpoints, their findings, and a folder for wounded copies."""

    paths: dict[str, Path]
    folder: Path

    def wounded(self, layout: str, group: str, kind: str, seed: int) -> Path:
        """A copy with one wound."""
        path = self.folder / "wounded"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.paths[f"source-{layout}"], path)
        after = list(LAYOUTS)[(list(LAYOUTS).index(layout) + 1) % len(LAYOUTS)]
        others = {"other seed": f"other-{layout}", "other tokenizer": "other", "other layout": f"source-{after}"}
        random_numbers = random.Random(f"{group} {kind} {layout} {seed}")
        patient = Patient(path, layout, {name: self.paths[place] for name, place in others.items()}, random_numbers)
        KINDS[group][kind](patient)
        patient.save()
        return path

    def findings(self, path: Path, *, digests: bool) -> dict[Finding, str]:
        """{finding: level} of a checkpoint, with its digests, or without digests and record but with the source."""
        if not digests:
            for name in (DIGESTS, RECORD):
                (path / name).unlink(missing_ok=True)
        try:
            rows = check_checkpoint(path, source=None if digests else self.paths["source"])
        except QCompressError as problem:
            return {("refused", "", problem.message): "error"}
        return {(row["rule"], place(row), str(row["value"])): row["level"] for row in rows}


def place(row: Row) -> str:
    return str(next((row[key] for key in ("tensor", "key", "file") if key in row), ""))


def cases(seeds: int) -> list[Case]:
    """Every (group, kind, layout, seed). Wounds at random places are repeated with other seeds."""
    return [
        (group, kind, layout, seed)
        for group, kinds in KINDS.items()
        for kind in kinds
        for layout in LAYOUTS
        for seed in range(seeds if group == "packed values" else 1)
    ]


def examine(clinic: Clinic, wounds: list[Case]) -> Iterator[Row]:
    """One row per wound: group, kind, layout, seed, and what is noticed with digests and with the source."""
    both = ("digests", "source")
    healthy = {
        (layout, name): clinic.findings(copy_of(clinic, layout), digests=name == "digests")
        for layout in LAYOUTS
        for name in both
    }
    for group, kind, layout, seed in wounds:
        path = clinic.wounded(layout, group, kind, seed)
        row: Row = {"group": group, "kind": kind, "layout": layout, "seed": seed}
        for name in both:
            new = clinic.findings(path, digests=name == "digests").items() - healthy[layout, name].items()
            levels = {level for _, level in new}
            row[name] = "error" if "error" in levels else "warning" if levels else None
            row[f"{name}_rules"] = sorted({finding[0] for finding, _ in new})
        yield row


def copy_of(clinic: Clinic, layout: str) -> Path:
    path = clinic.folder / "healthy"
    shutil.rmtree(path, ignore_errors=True)
    return Path(shutil.copytree(clinic.paths[f"source-{layout}"], path))


def summary(rows: list[Row]) -> Row:
    """Counts, and every wound that was not noticed with the reason."""
    result: Row = {"wounds": len(rows), "kinds": len({(row["group"], row["kind"]) for row in rows})}
    for name in ("digests", "source"):
        noticed = sum(row[name] is not None for row in rows)
        result[name] = {"noticed": noticed, "errors": sum(row[name] == "error" for row in rows)}
        result[name]["percent"] = round(100 * noticed / len(rows), 1)
    missed = [row for row in rows if row["digests"] is None or row["source"] is None]
    result["missed"] = [
        {key: row[key] for key in ("group", "kind", "layout", "seed", "digests", "source")}
        | {"reason": REASONS.get(row["kind"], "unexplained")}
        for row in missed
    ]
    return result


def table(rows: list[Row]) -> list[Row]:
    """One row per kind: how many of its wounds are noticed, and by which rules."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["group"], row["kind"]), []).append(row)
    return [
        {
            "group": group,
            "kind": kind,
            "wounds": len(same),
            "digests": sum(row["digests"] is not None for row in same),
            "source": sum(row["source"] is not None for row in same),
            "rules": sorted({rule for row in same for rule in row["source_rules"]}),
        }
        for (group, kind), same in kinds.items()
    ]


def as_text(value: Row) -> str:
    """JSON with one line per row of a table."""
    lists = {
        key: "[\n  " + ",\n  ".join(map(dump, rows)) + "\n ]" for key, rows in value.items() if isinstance(rows, list)
    }
    parts = [f" {dump(key)}: {lists.get(key) or dump(one)}" for key, one in value.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@click.command(help=__doc__)
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True, help="Wounds per kind of packed values.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for the result.")
def main(seeds: int, out: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clinic = Clinic(make_patients(Path(folder)), Path(folder))
        rows = list(examine(clinic, cases(seeds)))
    result = summary(rows)
    emit({key: value for key, value in result.items() if key != "missed"}, as_json=False)
    for row in result["missed"]:
        emit(row, as_json=False)
    if out is not None:
        command = f"scripts/check_wounds.py --seeds {seeds}"
        methods = ", ".join(f"{layout} by {method}" for layout, method in LAYOUTS.items())
        setting = (
            f"Qwen2 of 2 blocks, hidden size 64, random weights; {methods}; qcompress check, with and without digests"
        )
        value = {
            "date": date.today().isoformat(),
            "command": command,
            "setting": setting,
            **result,
            "rows": table(rows),
        }
        out.write_text(as_text(value), encoding="utf-8")
    raise SystemExit(0 if not [row for row in rows if row["digests"] is None] else 1)


if __name__ == "__main__":
    main()
