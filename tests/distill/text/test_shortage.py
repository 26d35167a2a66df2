"""Stages with little text: the error names stage, text and cause, its cures work, and --dry-run finds it too."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calibration.start import StartToken
from compress.checkpoint.read import Checkpoint
from compress.cli import cli
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.student.plan import check_inputs
from compress.distill.text import stages as stages_module
from compress.distill.text.shortage import check_fits, round_down
from compress.distill.text.stages import make_stages, stage_texts
from compress.recipe import parse_stage


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A scrap of text and a long text, by the names in the stages below."""
    monkeypatch.chdir(tmp_path)
    Path("scrap.txt").write_text("one short scrap of text about nothing much.")
    Path("long.txt").write_text("\n\n".join(f"question {i}: what is {i} and {i}? it is {i + i}." for i in range(99)))


@pytest.fixture
def tokenizer(tiny_llama, monkeypatch):
    monkeypatch.setattr(stages_module, "find_start", lambda *arguments: StartToken(None, 0.0, 0.0))
    return Checkpoint(tiny_llama).tokenizer


FIRST, SECOND = "name: a, text: [scrap.txt], steps: 3, seq_len: 8", "name: a, text: [long.txt], steps: 3"
SHORT = [
    ([FIRST, "name: b, text: [long.txt], replay: 0.9, steps: 3"], "stage b: replay=0.9 requires .* of scrap.txt"),
    (
        [SECOND, "name: b, text: [scrap.txt], replay: 0.1, steps: 3"],
        "stage b: scrap.txt: its share of a window of 25",
    ),
    ([SECOND, "name: b, text: [scrap.txt], steps: 3"], "stage b: scrap.txt: the text has .* a window needs 25"),
    ([FIRST, SECOND.replace("a,", "b,") + ", eval_text: scrap.txt"], "stage b: scrap.txt: .*a window needs 25"),
    (
        [SECOND, "name: b, text: [scrap.txt], replay: 0.001, steps: 3, seq_len: 16"],
        r"stage b: replay=0.001 gives long.txt 0 of .* tokens; raise replay to",
    ),
]


def settings_of(lines):
    return DistillConfig(blocks=1, stages=tuple(parse_stage(line) for line in lines))


def read(settings, tokenizer):
    return stage_texts(make_stages(settings), tokenizer, None)


def check(settings, tokenizer):
    for stage in make_stages(settings):
        check_fits(stage, tokenizer, start=False)


@pytest.mark.parametrize("action", [read, check])
@pytest.mark.parametrize(("lines", "words"), SHORT)
def test_the_run_and_its_dry_run_name_the_stage_and_the_cause(texts, tokenizer, lines, words, action):
    with pytest.raises(QCompressError, match=words) as error:
        action(settings_of(lines), tokenizer)
    assert "--samples" not in str(error.value) and "weight" not in str(error.value)


@pytest.mark.parametrize(("lines", "words"), SHORT)
def test_a_stage_that_follows_the_cure_can_be_read(texts, tokenizer, lines, words):
    with pytest.raises(QCompressError, match=words) as error:
        check(settings_of(lines), tokenizer)
    cures = re.findall(r"(?:lower|raise) (replay|seq_len) to (\S+?)[,; ]", f"{error.value} ")
    assert cures
    for key, value in cures:
        cured = settings_of([lines[0], re.sub(rf", {key}: [^,]*", "", lines[1]) + f", {key}: {value}"])
        check(cured, tokenizer)
        assert all(len(text.windows.ids) for text in read(cured, tokenizer))


def test_without_stages_the_cures_are_options(texts, tokenizer):
    settings: dict[str, Any] = {"blocks": 1, "steps": 3}
    with pytest.raises(QCompressError, match=r"^scrap.txt: its share .* lower --seq-len to \d+, or add text"):
        check(DistillConfig(text=("scrap.txt=9", "long.txt"), **settings), tokenizer)
    with pytest.raises(QCompressError, match=r"^long.txt: this text gives 0 of .* raise its weight"):
        check(DistillConfig(text=("default", "long.txt=0.00001"), **settings), tokenizer)


def test_a_dry_run_refuses_what_the_run_would_refuse(texts, tiny_llama):
    lines, words = SHORT[0]
    arguments = [word for line in lines for word in ("--stage", line)]
    shown = CliRunner().invoke(cli, ["distill", str(tiny_llama), "--blocks", "1", "--dry-run", "-o", "x", *arguments])
    assert shown.exit_code == 1 and re.search(words, shown.output), shown.output


def test_without_a_tokenizer_lengths_are_not_checked(texts, tiny_llama, tmp_path):
    settings = DistillConfig(blocks=1, text=("scrap.txt",))
    (tmp_path / "bare").mkdir()
    assert check_inputs(settings, tmp_path / "bare")["texts"] == "scrap.txt, heldout"
    with pytest.raises(QCompressError, match="a window needs"):
        check_inputs(settings, tiny_llama)


def test_a_share_in_a_cure_is_rounded_to_the_safe_side():
    assert round_down(0.2278) == 0.22 and round_down(-0.0301) == -0.031 and round_down(0.22) == 0.22
