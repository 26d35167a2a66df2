"""From a teacher on disk to a student on disk: what is written, what it says of itself, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.cli import cli
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig, LoopConfig
from compress.distill.job import distill_checkpoint
from compress.distill.student.plan import plan_distill, plan_row
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows

pytestmark = pytest.mark.slow  # runs whole jobs

SHORT: dict[str, Any] = {
    "alpha": 1.0,
    "steps": 6,
    "batch_size": 4,
    "seq_len": 32,
    "learning_rate": 3e-3,
    "eval_every": 3,
}


@pytest.fixture(scope="module")
def distilled(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    """A student of one block of two: its directory, the row that came back, the rows that were reported."""
    out, reported = tmp_path_factory.mktemp("distilled") / "student", []
    row = distill_checkpoint(tiny_llama, out, DistillConfig(blocks=1, **SHORT), reported.append)
    return out, row, reported


def test_distillation_lowers_the_heldout_kl_and_reports_the_factor(distilled):
    _, row, _ = distilled
    assert 0 < row["kl_after"] < row["kl_before"]
    assert row["factor"] == pytest.approx(row["kl_before"] / row["kl_after"])
    assert row["tokens_read"] == 6 * 4 * 32 and row["stopped"] is None


def test_the_reported_scores_are_those_that_compare_finds(distilled, tiny_llama):
    out, row, _ = distilled
    windows = evaluation_windows(tiny_llama, [out], n_samples=row["eval_samples"], seq_len=row["eval_seq_len"])
    assert windows.manifest["digest"] == Checkpoint(out).record["eval_text"]["digest"]
    teacher, student = compare_rows(tiny_llama, [out], windows)
    assert row["tokens_scored"] == student["tokens"] == int(windows.mask[:, 1:].sum())
    for key, found in (("kl_after", "kl"), ("perplexity_after", "perplexity")):
        assert row[key] == pytest.approx(student[found], rel=1e-5)
        assert row[f"{key}_se"] == pytest.approx(student[f"{found}_se"], rel=1e-4)
    assert row["perplexity_teacher"] == pytest.approx(teacher["perplexity"], rel=1e-5)


def test_the_windows_that_measure_never_change_the_weights(distilled, tiny_llama, tmp_path):
    out, row, _ = distilled
    few = LoopConfig(eval_samples=2, eval_seq_len=64)
    other = distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(blocks=1, **SHORT), loop=few)
    assert (other["eval_samples"], other["tokens_scored"]) == (2, 2 * 63)
    assert other["kl_after"] != row["kl_after"] and other["best_step"] == row["best_step"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_padding_rows_of_a_vocabulary_never_change_the_result(tiny_llama, tmp_path):
    plain, name = Checkpoint(tiny_llama), "model.embed_tokens.weight"
    tensors = {key: plain.tensor(key) for key in plain.tensors}
    tensors[name] = torch.cat([tensors[name], torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).half()])
    pairs = [(TensorSpec.of(key, t), t) for key, t in tensors.items()]
    save_checkpoint(tmp_path / "padded", plain.config | {"vocab_size": 160}, pairs, source=tiny_llama)
    rows, few = [], SHORT | {"steps": 8, "eval_every": 2, "learning_rate": 1e-3}
    for path in (tiny_llama, tmp_path / "padded"):
        rows.append(distill_checkpoint(path, tmp_path / f"{path.name}-out", DistillConfig(blocks=1, **few)))
    for key in ("kl_before", "kl_after", "perplexity_teacher", "perplexity_after"):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-3)


def test_the_student_is_an_ordinary_checkpoint(distilled, tiny_llama):
    out, row, _ = distilled
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.num_hidden_layers == 1
    assert model.dtype == torch.float16 and sum(p.numel() for p in model.parameters()) == row["parameters"]
    config = Checkpoint(out).config
    assert config["torch_dtype"] == config["dtype"] == "float16" and config["rope_theta"] == 5000.0
    text = "the quick brown fox"
    assert AutoTokenizer.from_pretrained(out)(text) == AutoTokenizer.from_pretrained(tiny_llama)(text)
    assert sum(info.bytes for info in Checkpoint(out).tensors.values()) == row["float16_bytes"]


def test_the_record_holds_every_setting_and_source_of_the_student(distilled, tiny_llama):
    out, row, _ = distilled
    record = Checkpoint(out).record
    assert record["command"] == "distill" and record["source"]["digest"] == Checkpoint(tiny_llama).digest
    assert record["settings"]["learning_rate"] == 3e-3 and record["settings"]["total_steps"] == 6
    assert record["calibration"]["sources"][0]["name"] == "default" and "token" in record["calibration"]["start"]
    assert record["eval_text"]["sources"][0]["name"] == "heldout"
    assert [point["step"] for point in record["loss"]] == [1, 2, 3, 4, 5, 6]
    assert {"step", "loss", "kl", "ce"} <= record["loss"][0].keys()
    assert len(record["blocks"]) == 1 and len(record["sweep"]) == 2
    assert record["blocks"] == [1 - int(min(record["sweep"], key=record["sweep"].get))]
    assert record["rows"] == [{key: value for key, value in row.items() if key != "seconds"}]
    assert {
        "kl_before",
        "kl_after",
        "factor",
        "perplexity_teacher",
        "perplexity_before",
        "perplexity_after",
    } <= row.keys()


def test_the_student_has_a_model_card_and_passes_check(distilled, tiny_llama):
    out, _, _ = distilled
    text = (out / "README.md").read_text()
    assert "base_model:\n- llama" in text and Checkpoint(tiny_llama).digest in text
    assert not [row for row in check_checkpoint(out, source=tiny_llama) if row["level"] == "error"]


def test_every_phase_before_training_is_reported_and_an_estimate(distilled, tiny_llama):
    _, _, reported = distilled
    start = reported[: next(index for index, row in enumerate(reported) if "loss" in row)]
    assert {"loads": tiny_llama.name} in start
    assert [row["block"] for row in start if row.get("reads") == tiny_llama.name] == ["0/2", "1/2", "2/2"]
    assert any(row.get("measures") == "student" and row["windows"] == "24/24" for row in start)
    (estimate,) = [row for row in start if row.get("trains") == "student"]
    steps = [row for row in reported if "loss" in row]
    assert estimate["steps"] == len(steps) and estimate["eta"] > 0


def test_every_step_is_reported_with_speed_and_remaining_time(distilled):
    _, _, reported = distilled
    steps = [row for row in reported if "loss" in row]
    assert [row["step"] for row in steps] == [f"{i}/6" for i in range(1, 7)]
    assert all({"loss", "kl", "ce", "tokens_per_second", "eta"} <= row.keys() for row in steps)


def test_a_narrower_student_loads_and_learns(tiny_qwen2, tmp_path):
    settings = DistillConfig(
        hidden_size=32, intermediate_size=64, num_heads=2, num_kv_heads=1, dtype="bfloat16", **SHORT
    )
    row = distill_checkpoint(tiny_qwen2, tmp_path / "out", settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "qwen2" and model.config.hidden_size == 32 and model.dtype == torch.bfloat16
    assert Checkpoint(tmp_path / "out").record["width"]["importance"] == "activations"
    assert row["kl_after"] < row["kl_before"]


def test_an_existing_checkpoint_can_be_the_student(tiny_llama, tiny_qwen2, tmp_path):
    row = distill_checkpoint(tiny_qwen2, tmp_path / "out", DistillConfig(student=str(tiny_llama), **SHORT))
    assert row["kl_after"] < row["kl_before"]
    assert Checkpoint(tmp_path / "out").config["model_type"] == "llama"


def test_a_student_of_another_tokenizer_is_refused_by_both_names(tiny_llama, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        QCompressError, match=r"other: the tokenizer has .* tokens, that of .*llama has .* both share 126;"
    ):
        distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(student=str(other), **SHORT))
    assert not (tmp_path / "out").exists()


def test_text_that_is_trained_on_cannot_be_held_out(tiny_llama, tmp_path):
    settings = DistillConfig(blocks=1, text=("heldout",), **SHORT)
    with pytest.raises(QCompressError, match="heldout: the student trains on this text"):
        distill_checkpoint(tiny_llama, tmp_path / "out", settings)


def test_text_without_a_token_to_train_on_is_refused(tiny_llama, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"a question without an answer, number {i}"}]} for i in range(99)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DistillConfig(blocks=1, text=(str(tmp_path / "chat.jsonl"),), **SHORT)
    with pytest.raises(
        QCompressError,
        match=r"chat.jsonl: \d+ samples with 768 tokens, but 0 tokens to train on",
    ):
        distill_checkpoint(tiny_llama, tmp_path / "out", settings)


def test_a_file_that_adds_nothing_to_a_mixture_is_refused_by_name(tiny_llama, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"a question without an answer, number {i}"}]} for i in range(99)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DistillConfig(blocks=1, text=("default", str(tmp_path / "chat.jsonl=0.5")), **SHORT)
    with pytest.raises(QCompressError, match=r"^chat.jsonl: \d+ samples with 248 tokens, but 0 tokens to train on"):
        distill_checkpoint(tiny_llama, tmp_path / "out", settings)


def test_a_text_that_is_too_short_for_the_run_is_read_again(tiny_llama, tmp_path):
    for name, first in (("short.txt", 0), ("others.txt", 20)):
        sentences = (f"sentence {i} is about the fox and the dog." for i in range(first, first + 20))
        (tmp_path / name).write_text(" ".join(sentences))
    reported: list[dict[str, Any]] = []
    texts = {"text": (str(tmp_path / "short.txt"),), "eval_text": str(tmp_path / "others.txt")}
    settings = DistillConfig(blocks=1, **SHORT | texts)
    distill_checkpoint(tiny_llama, tmp_path / "out", settings, reported.append)
    (text,) = [row for row in reported if "epochs" in row]
    assert text["epochs"] == pytest.approx(24 / text["windows"], abs=0.01) and text["windows"] < 24


@pytest.mark.parametrize(
    ("rate", "reason"), [(1e30, "before it improved the student"), (1e3, "steps did not improve the student.* before")]
)
def test_training_that_gains_nothing_writes_nothing(tiny_llama, tmp_path, rate, reason):
    settings = DistillConfig(blocks=1, **SHORT | {"learning_rate": rate})
    with pytest.raises(QCompressError, match=rf"{reason}.*; no student was written; lower --learning-rate 1"):
        distill_checkpoint(tiny_llama, tmp_path / "out", settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out.distill.jsonl"]


def test_a_plan_needs_no_weights(tiny_llama, tmp_path):
    shutil.copyfile(tiny_llama / "config.json", tmp_path / "config.json")
    settings = DistillConfig(blocks=1, **SHORT)
    row = plan_row(plan_distill(tmp_path, settings), settings)
    assert row["parameters"] < row["teacher_parameters"] and row["float16_bytes"] == 2 * row["parameters"]
    assert row["memory_bytes"] > 4 * row["teacher_parameters"] and row["steps"] == 6


def test_a_run_that_exceeds_the_memory_is_refused_before_it_starts(tiny_llama, tmp_path, monkeypatch):
    import psutil

    class Little:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(QCompressError, match=r"llama: needs about .* GB of memory, but 0.0 GB are free"):
        distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(blocks=1, **SHORT))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--blocks", "3"], "num_layers=3: the student is cut out of the teacher, which has 2"),
        (["--num-heads", "3"], "num_heads=3 must be a multiple of num_kv_heads=2"),
        (["--student", "nowhere"], "nowhere: directory not found"),
        ([], "no option given"),
        (["--blocks", "1", "--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tiny_llama, tmp_path, arguments, words):
    shown = CliRunner().invoke(
        cli, ["distill", str(tiny_llama), "--out", str(tmp_path / "out"), "--steps", "1", *arguments]
    )
    assert shown.exit_code == 1 and words in shown.output and "Traceback" not in shown.output
    assert not list(tmp_path.iterdir())


def test_the_command_prints_its_plan_as_json(tiny_llama, tmp_path):
    arguments = ["distill", str(tiny_llama), "--out", str(tmp_path / "out"), "--blocks", "1", "--dry-run", "--json"]
    shown = CliRunner().invoke(cli, arguments)
    assert json.loads(shown.stdout)["student"].startswith("llama, 1 blocks") and not list(tmp_path.iterdir())


def test_a_family_that_overflows_float16_is_refused_in_it(tmp_path):
    from transformers import Gemma2Config

    config = Gemma2Config(num_hidden_layers=4, hidden_size=64, vocab_size=99).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma2ForCausalLM"]}))
    with pytest.raises(QCompressError, match="use --dtype bfloat16"):
        plan_distill(tmp_path, DistillConfig(blocks=2))


@pytest.mark.parametrize(
    "arguments", [("distill", "--blocks", "1"), ("init-student", "--blocks", "1"), ("capture",)], ids=lambda a: a[0]
)
def test_every_command_that_runs_a_teacher_obeys_device(tiny_llama, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    command, *options = arguments
    shown = CliRunner().invoke(
        cli, [command, str(tiny_llama), "--out", str(tmp_path / "out"), *options, "--device", "cuda"]
    )
    assert shown.exit_code == 1 and "--device cuda: torch finds no GPU" in shown.output
    assert not (tmp_path / "out").exists()
