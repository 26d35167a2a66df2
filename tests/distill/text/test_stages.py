"""Stages: what they inherit, what they replay, and that each begins where the one before was best."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calibration.corpus import parse_source
from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig, StageConfig
from compress.distill.job import distill_checkpoint
from compress.distill.text.stages import make_stages, mix
from compress.recipe import parse_stage

SHORT: dict[str, Any] = {
    "blocks": 1,
    "alpha": 1.0,
    "batch_size": 4,
    "seq_len": 32,
    "learning_rate": 3e-3,
    "eval_every": 2,
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "task.txt"
    path.write_text(
        "\n\n".join(f"question {i}: what is {i} and {i}? it is {i + i}, as anyone can see." for i in range(80))
    )
    return path


@pytest.fixture(scope="module")
def staged(tiny_llama: Path, task: Path, tmp_path_factory: pytest.TempPathFactory):
    """Two stages, the second with another text and a replay of the first's: directory, row, reported rows."""
    out, reported = tmp_path_factory.mktemp("staged") / "student", []
    stages = (
        StageConfig("general", steps=4),
        StageConfig("task", text=(str(task),), replay=0.25, steps=3, learning_rate=1e-3),
    )
    row = distill_checkpoint(tiny_llama, out, DistillConfig(stages=stages, **SHORT), reported.append)
    return out, row, reported


def test_a_stage_inherits_the_settings_it_leaves_out():
    stages = (StageConfig("a", tokens=4096), StageConfig("b", learning_rate=1e-5, text="x.txt"))
    whole = DistillConfig(blocks=2, steps=7, alpha=0.5, stages=stages)
    first, second = whole.resolved()
    assert (first.tokens, first.steps, first.total_steps, first.alpha) == (4096, None, 4, 0.5)
    assert (second.steps, second.learning_rate, second.text, second.eval_text) == (7, 1e-5, ("x.txt",), "heldout")
    assert whole.total_steps == 4 + 7 and whole.total_tokens == 11 * 4 * 256
    assert whole.texts == ("default", "heldout", "x.txt")


def test_without_stages_a_run_is_one_stage_of_the_same_settings():
    whole = DistillConfig(blocks=2, steps=7)
    (stage,) = make_stages(whole)
    assert stage.settings is whole and stage.text == whole.text and stage.named() == {}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], "names must differ: a, a"),
        ([{"name": "a", "replay": 0.5}], "stage a: replay=0.5, but no stage comes before"),
        ([{"name": "a"}, {"name": "b", "replay": 1.0}], "stage b: replay=1.0"),
        ([{"name": "a", "alpha": 2.0}], "stage a: alpha=2.0"),
        ([{"name": "a", "steps": 2, "tokens": 2}], "stage a: steps=2 and tokens=2"),
        ([{"name": "a b"}], "stage 'a b': invalid name; use letters"),
    ],
)
def test_an_impossible_stage_is_named(stages, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(blocks=1, stages=stages)


def test_stages_and_a_cache_are_not_mixed():
    with pytest.raises(ValueError, match="1 stages and cache=c: a cache holds the text of a run without stages"):
        DistillConfig(blocks=1, stages=({"name": "a"},), cache="c")


def test_replay_is_a_share_of_the_text_and_earlier_sources_keep_their_weights():
    mixed = mix(["c"], [["a=3", "b"], ["c"]], 0.4)
    weights = {source.name: source.weight for source in map(parse_source, mixed)}
    assert weights == pytest.approx({"c": 0.6 + 0.2, "a": 0.15, "b": 0.05})
    assert mix(["c=2", "d"], [["a"]], 0.0) == ("c=2", "d")


def test_each_stage_begins_with_the_best_weights_of_the_one_before(staged):
    _, row, _ = staged
    general, second = row["stages"]
    assert general["kl_after"] < general["kl_before"] and general["tokens_scored"] < row["tokens_scored"]
    assert second["kl_before"] == pytest.approx(general["kl_after"], rel=1e-2)  # as stored, in 16 bits


def test_every_row_of_the_curve_names_its_stage(staged):
    out, row, reported = staged
    curve = Checkpoint(out).record["loss"]
    assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6, 7]
    assert [point["stage"] for point in curve] == ["general"] * 4 + ["task"] * 3
    assert row["steps"] == 7 and row["tokens_read"] == 7 * 4 * 32 and row["best_step"] in (6, 7)
    assert [one["stage"] for one in reported if "loss" in one] == ["general"] * 4 + ["task"] * 3


def test_the_record_holds_every_text_that_was_trained_on(staged):
    out, _, _ = staged
    record = Checkpoint(out).record
    assert {source["name"] for source in record["calibration"]["sources"]} == {"default", "task.txt"}
    second = record["stages"][1]
    shares = {source["name"]: source["tokens"] for source in second["calibration"]["sources"]}
    assert shares["default"] / sum(shares.values()) == pytest.approx(0.25, abs=0.02)
    assert record["settings"]["stages"][1]["replay"] == 0.25
    assert "| stage task, training | task.txt | 0.75 |" in (out / "README.md").read_text()


def test_a_first_stage_alone_is_a_distillation_without_stages(tiny_llama, tmp_path):
    plain = DistillConfig(steps=3, **SHORT)
    distill_checkpoint(tiny_llama, tmp_path / "plain", plain)
    distill_checkpoint(tiny_llama, tmp_path / "one", DistillConfig(stages=({"name": "only", "steps": 3},), **SHORT))
    first, second = (tmp_path / name / "model.safetensors" for name in ("plain", "one"))
    assert first.read_bytes() == second.read_bytes()
    named = [{k: v for k, v in point.items() if k != "stage"} for point in Checkpoint(tmp_path / "one").record["loss"]]
    assert named == Checkpoint(tmp_path / "plain").record["loss"]


def test_a_stage_that_diverges_ends_the_run_and_keeps_the_stage_before(tiny_llama, tmp_path):
    stages = ({"name": "good", "steps": 2}, {"name": "bad", "learning_rate": 1e30}, {"name": "never"})
    row = distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(stages=stages, **SHORT | {"eval_every": 1}))
    assert [one["stage"] for one in row["stages"]] == ["good", "bad"]
    assert row["stages"][1]["stopped"].startswith("step") and row["kl_after"] < row["kl_before"]
    assert Checkpoint(tmp_path / "out").config["model_type"] == "llama"


def test_a_text_that_another_stage_trains_on_cannot_be_held_out(tiny_llama, task, tmp_path):
    stages = ({"name": "a", "steps": 1, "eval_text": str(task)}, {"name": "b", "steps": 1, "text": [str(task)]})
    with pytest.raises(QCompressError, match=r"task.txt: another stage trains on this text"):
        distill_checkpoint(tiny_llama, tmp_path / "out", DistillConfig(stages=stages, **SHORT))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a, lerning_rate: 1", "unknown key lerning_rate; did you mean learning_rate?"),
        ("steps: 3", "name: Field required"),
        ("{name: a", "is not valid YAML"),
    ],
)
def test_a_wrong_stage_on_the_command_line_is_one_line(text, words, tmp_path):
    arguments = ["distill", str(tmp_path), "--blocks", "1", "--out", str(tmp_path / "out"), "--stage", text]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 1 and words in shown.output and "Traceback" not in shown.output


def test_stages_of_the_command_line_are_those_of_a_recipe(tiny_llama, tmp_path):
    stage = parse_stage("name: task, text: [x.txt=0.5], replay: 0.25, steps: 3")
    assert StageConfig(**stage) == StageConfig("task", text=("x.txt=0.5",), replay=0.25, steps=3)
    arguments = ["distill", str(tiny_llama), "--out", str(tmp_path / "out"), "--blocks", "1", "--dry-run", "--json"]
    shown = CliRunner().invoke(cli, [*arguments, "--stage", "name: a, steps: 5", "--stage", "{name: b, steps: 6}"])
    assert json.loads(shown.stdout)["steps"] == 11


def test_a_zero_in_a_stage_overrides_the_setting_of_the_run():
    stage = StageConfig("task", alpha=0.0, align_weight=0.0)
    assert stage.overrides() == {"alpha": 0.0, "align_weight": 0.0} and "replay" not in stage.changes()
