"""What the evaluation tests share: windows of random ids, quantized twins, and damaged or widened copies."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from calibration.windows import Windows
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.core.config import QuantizeConfig
from compress.evaluate.report import ReportData, make_report
from compress.quantize.job import quantize_checkpoint

Change = Callable[[dict, dict], None]


def random_windows(n_samples: int = 5, seq_len: int = 24, vocabulary: int = 128, seed: int = 0) -> Windows:
    """Uniform ids; two tokens in three count, as in a conversation."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (n_samples, seq_len), generator=generator)
    mask = torch.rand(n_samples, seq_len, generator=generator) < 0.67
    return Windows(ids, mask, {"start_token": None, "seed": seed, "sources": []})


def changed_copy(source: Path, out: Path, change: Change) -> Path:
    """A copy of a checkpoint after `change(config, tensors)`."""
    checkpoint = Checkpoint(source)
    config, tensors = dict(checkpoint.config), {name: checkpoint.tensor(name) for name in checkpoint.tensors}
    change(config, tensors)
    pairs = [(TensorSpec.of(name, tensor), tensor) for name, tensor in tensors.items()]
    save_checkpoint(out, config, pairs, source=source)
    return out


@pytest.fixture
def windows() -> Windows:
    return random_windows()


@pytest.fixture
def make_windows() -> Callable[..., Windows]:
    return random_windows


@pytest.fixture
def change_copy() -> Callable[[Path, Path, Change], Path]:
    return changed_copy


@pytest.fixture(scope="session")
def quantized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tiny_llama rounded to 4 bits, by format."""
    folder = tmp_path_factory.mktemp("rounded")
    paths = {name: folder / name for name in ("awq", "gptq", "compressed-tensors")}
    for name, path in paths.items():
        quantize_checkpoint(tiny_llama, path, QuantizeConfig(method="rtn", format=name, group_size=32))
    return paths


@pytest.fixture
def narrow(tiny_llama: Path, tmp_path: Path) -> Path:
    """A random llama with half the width of tiny_llama, and its tokenizer."""
    generator = torch.Generator().manual_seed(3)

    def change(config: dict, tensors: dict) -> None:
        config |= {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
        for name, tensor in tensors.items():
            halves = [32 if size == 64 else 16 if size == 32 else size for size in tensor.shape]
            tensors[name] = (torch.randn(halves, generator=generator) * 0.1 + ("norm" in name)).half()

    return changed_copy(tiny_llama, tmp_path / "narrow", change)


@pytest.fixture
def padded(tiny_llama: Path, tmp_path: Path) -> Path:
    """tiny_llama with eight more rows of vocabulary that no token uses, and that are likely: they must not count."""

    def change(config: dict, tensors: dict) -> None:
        config["vocab_size"] = 136
        table = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([table, 3 * table[:8]])

    return changed_copy(tiny_llama, tmp_path / "padded", change)


@pytest.fixture
def copy_with(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint with one JSON file changed: copy_with(source, "qcompress.json", change)."""

    def copy(source: Path, name: str, change: Callable[[dict], None], out: str = "copy") -> Path:
        target = tmp_path / out
        shutil.copytree(source, target)
        file = target / name
        value = json.loads(file.read_text()) if file.is_file() else {}
        change(value)
        file.write_text(json.dumps(value))
        return target

    return copy


FIGURES = {
    "format": "awq",
    "method": "gptq",
    "bytes": 114_000_000,
    "parameters": 134_515_008,
    "bits_per_weight": 4.3125,
    "bits_per_parameter": 6.78,
    "perplexity": 35.62,
    "perplexity_se": 2.61,
    "perplexity_ratio": 1.0473,
    "perplexity_ratio_se": 0.0121,
    "kl": 0.07654,
    "kl_se": 0.0032,
    "kl_median": 0.0411,
    "kl_p95": 0.29,
    "kl_p99": 0.61,
    "top1": 0.8571,
    "top1_se": 0.01,
    "top5": 0.9712,
    "top5_se": 0.004,
    "kl_low": 0.0702,
    "kl_high": 0.0833,
    "perplexity_ratio_low": 1.0241,
    "perplexity_ratio_high": 1.0699,
    "text": "heldout",
    "n_samples": 12,
    "seq_len": 512,
    "tokens": 6132,
    "start_token": None,
    "vocabulary": 49152,
    "seed": 0,
    "windows_digest": "sha256:aa",
    "record": {},
}
TO_ITSELF = {"kl": 0.0, "kl_se": 0.0, "perplexity_ratio": 1.0, "top1": 1.0, "bytes": 269_000_000, "format": "float16"}


@pytest.fixture(scope="session")
def make_row() -> Callable[..., dict]:
    """make_row(name, role, **changes): a row of `compare_rows`, whose digest is sha256:NAME."""

    def make(name: str, role: str = "candidate", **changes: object) -> dict:
        return {"name": name, "role": role, **FIGURES, "digest": f"sha256:{name}", **changes}

    return make


@pytest.fixture(scope="session")
def make_rows(make_row: Callable[..., dict]) -> Callable[..., list[dict]]:
    """make_rows(*candidates): a reference called base, and the candidates, or one called small."""

    def make(*candidates: dict) -> list[dict]:
        return [make_row("base", "reference", **TO_ITSELF), *(candidates or [make_row("small")])]

    return make


@pytest.fixture(scope="session")
def linears() -> list[dict]:
    """A record's rows: two linears in three blocks, each at a quarter to three quarters of plain rounding's error."""
    return [
        {"block": f"model.layers.{block}", "linear": name, "error": 0.001 * (block + 1), "rtn_error": 0.004}
        for block in range(3)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    ]


@pytest.fixture(scope="session")
def curve() -> list[dict]:
    return [{"step": step, "loss": 3 / step, "kl": 2 / step, "ce": 4 / step} for step in range(1, 9)]


def breakdown(kl: float) -> dict:
    """The parts of a candidate's row that say where its drift is."""
    edges = [0, 16, 32, 64, 128, 256, 512]
    about = {"tokens": 100, "reference_nll": 3.0, "nll": 3.1}
    positions = [about | {"start": start, "end": end, "kl": kl * (1 + 9 / end)} for start, end in pairwise(edges)]
    documents = [about | {"document": f"report <{number}>", "kl": kl * (2 - number / 9)} for number in range(9)]
    guess = [{"token": " not", "probability": 0.61}, {"token": "\n", "probability": 0.2}]
    place = {"kl": 4.21, "window": 3, "position": 77, "document": "report", "before": "the model is ", "token": "<b>"}
    worst = [about | place | {"reference": guess, "candidate": guess[::-1]} for _ in range(20)]
    blocks = [
        {
            "block": number,
            "gain": 1.05 if number == 3 else 0.99,
            "error": 0.01 + kl / 40 * number,
            "score": 9.0 * (number == 3),
        }
        | {"outlier": number == 3 and kl > 0.2}
        for number in range(6)
    ]
    return {"positions": positions, "documents": documents, "worst": worst, "blocks": blocks}


def speed_row(row: dict) -> dict:
    """A row of `qcompress bench`, measured."""
    first = row["role"] == "reference"
    figures = {"weights_bytes": row["bytes"], "peak_bytes": 2 * row["bytes"], "ttft_ms": 488.0, "tpot_ms": 42.2}
    figures |= {
        "decode_throughput": 94.3,
        "output_throughput": 70.1,
        "total_token_throughput": 210.0,
        "largest_batch": 41,
    }
    gains = {f"{key}_gain": None if first else 12.7 for key in figures}
    spread = {
        f"{key}_{end}": figures[key] * by for key in ("ttft_ms", "tpot_ms") for end, by in (("low", 0.9), ("high", 1.2))
    }
    settings = {"prompt_tokens": 1024, "new_tokens": 512, "batch_size": 4, "repeats": 5, "error": None, "note": None}
    where = {"kind": "measured", "runtime": "vllm", "runtime_version": "0.32", "device": "a CPU <of sorts>"}
    return {key: row[key] for key in ("name", "role", "digest")} | where | settings | figures | spread | gains


def hardware_row(row: dict, *, fits: bool) -> dict:
    """A row of `qcompress bench`, predicted."""
    request = {"prompt_tokens": 1024, "new_tokens": 512, "request_tokens": 1536, "max_requests": 256}
    hardware = {
        "kind": "predicted",
        "hardware": "orin-nano",
        "hardware_title": "Jetson Orin Nano",
        "memory_bytes": 8_000_000_000,
    }
    figures = {"fits": fits, "reason": None if fits else "too large", "largest_batch": 19, "longest_context": 32768}
    return {"name": row["name"], "role": row["role"], "digest": None, **request} | hardware | figures


@pytest.fixture(scope="session")
def full_data(make_row: Callable[..., dict], make_rows: Callable[..., list[dict]], linears, curve) -> ReportData:
    """ReportData with something in every section: three candidates, one of them over the budget."""
    rows = make_rows(
        make_row("near", kl=0.0511, record={"rows": linears}),
        make_row("far-with-a-long-name-that-needs-room", kl=0.21, top1=0.71, bytes=104_000_000),
        make_row("fat", kl=0.03, bytes=172_000_000),
    )
    rows[0]["record"] = {"loss": curve}
    for row in rows[1:]:
        row |= breakdown(row["kl"])
    kinds = {"qa": (0.5, 91.0), "python": (0.31, 62.5), "math": (0.0, None), "json": (0.25, 101.0), "all": (0.2, 84.7)}
    retention, samples = [], []
    for row in rows:
        for kind, (score, retained) in kinds.items():
            share = None if row["role"] == "reference" else retained
            about = {key: row[key] for key in ("name", "role", "digest")}
            figures = {"kind": kind, "items": 60, "errors": 0, "empty": 1 if kind == "json" else 0, "score": score}
            interval = {"retention_low": share and share - 11.3, "retention_high": share and share + 12.9}
            settings = {"suite": "bundled", "suite_digest": "sha256:s", "runtime": "transformers"}
            retention.append(about | figures | {"score_se": 0.05, "retention": share} | interval | settings)
    for number, kind in enumerate(("qa", "multi-turn")):
        turns = ["Which <b>bay</b> is for returns?", "And then?"][: number + 1]
        answers = [
            {"name": row["name"], "digest": row["digest"], "answers": ["Bay 4 " * 30, ""][: number + 1]}
            | {"score": index % 2, "reason": "wrong"}
            for index, row in enumerate(rows)
        ]
        samples.append({"id": kind, "kind": kind, "turns": turns, "answers": answers})
    days = [f"2025-01-0{day}T02:00:00+00:00" for day in range(1, 6)]
    history = [
        {"time": day, "command": "eval", "name": "near", "kind": "all", "score": 0.3, "kl": 0.05} for day in days
    ]
    history[0]["tag"] = "v1"
    limits = {"max_size": 150_000_000, "max_kl": 0.25}
    return ReportData(
        rows,
        speed=[speed_row(row) for row in rows] + [hardware_row(row, fits=row["name"] != "base") for row in rows],
        retention=retention,
        samples=samples,
        history=history,
        limits=limits,
        command="qcompress compare base near",
    )


@pytest.fixture(scope="session")
def full_page(full_data: ReportData) -> str:
    """The report of `full_data`, drawn once."""
    return make_report(full_data)
