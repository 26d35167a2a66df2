"""A training that was killed goes on to the same bytes; one that met a full disk or other settings says so."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.read import RECORD, Checkpoint, read_json
from compress.checkpoint.record import DIGESTS
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig, LoopConfig
from compress.distill.job import distill_checkpoint
from compress.distill.training import journal as journals
from compress.distill.training.journal import JOURNAL, Progress, StateSaver, TrainingJournal, work_path

pytestmark = pytest.mark.slow  # runs whole jobs

SETTINGS: dict[str, Any] = {"blocks": 1, "alpha": 1.0, "batch_size": 4, "seq_len": 32, "learning_rate": 3e-3}
PLAIN = SETTINGS | {"steps": 5, "eval_every": 3}
STAGES = ({"name": "first", "steps": 2}, {"name": "second", "steps": 3, "align_weight": 0.0})
STAGED = SETTINGS | {"align_weight": 0.1, "eval_every": 2, "stages": STAGES}
OWN = ({"name": "first", "steps": 2}, {"name": "own", "steps": 3, "on_policy": True})
ADAPTED = SETTINGS | {"lora_rank": 4, "learning_rate": 1e-2, "eval_every": 2, "stages": OWN}


@pytest.fixture(scope="module", autouse=True)
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two short texts, for every run to train on and be judged by."""
    folder, patch = tmp_path_factory.mktemp("texts"), pytest.MonkeyPatch()
    for name, words in (("text", "fox jumps over the lazy dog"), ("eval_text", "user asks the model a question")):
        text = "\n\n".join(f"line {i}: the quick {words}, {i * i} times." for i in range(60 if name == "text" else 8))
        (folder / f"{name}.txt").write_text(text)
        patch.setitem(SETTINGS, name, str(folder / f"{name}.txt"))
    for settings in (PLAIN, STAGED, ADAPTED):
        for name in ("text", "eval_text"):
            patch.setitem(settings, name, SETTINGS[name])
    yield
    patch.undo()


class Killed(Exception):
    """What stands for SIGKILL in one process: nothing of ours catches it."""


def run(teacher: Path, out: Path, settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    report = options.pop("report", lambda row: None)
    return distill_checkpoint(teacher, out, DistillConfig(**settings), report, loop=LoopConfig(**options))


def killed_at(count: int) -> Any:
    """A report that dies at the `count`-th row with a loss."""
    seen: list[Any] = []

    def report(row: dict[str, Any]) -> None:
        seen.extend([row] if "loss" in row else [])
        if len(seen) == count:
            raise Killed

    return report


def files(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, the folder's own name left out of the record, and the record's digest with it."""
    contents = {path.name: path.read_bytes().replace(str(folder).encode(), b"OUT") for path in folder.iterdir()}
    digests = json.loads(contents[DIGESTS])
    assert digests["files"].pop(RECORD)
    return contents | {DIGESTS: json.dumps(digests).encode()}


@pytest.fixture(scope="module", params=[PLAIN, STAGED, ADAPTED], ids=["plain", "staged", "adapters, own answers"])
def whole(request, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Settings, and the student of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "student"
    run(tiny_llama, out, request.param)
    return request.param, out


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(whole, tiny_llama, tmp_path):
    settings, expected = whole
    out = tmp_path / "student"
    for moment in (2, 3):
        with pytest.raises(Killed):
            run(tiny_llama, out, settings, report=killed_at(moment), save_every=1)
        assert not out.exists() and len(list(work_path(out).glob("*.safetensors"))) <= 1
    reported: list[dict[str, Any]] = []
    run(tiny_llama, out, settings, report=reported.append, save_every=1)
    losses = [row for row in reported if "loss" in row]
    assert len(losses) < len(Checkpoint(expected).record["loss"]) - 1  # it did go on, it did not begin anew
    assert files(out) == files(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in expected.parent.iterdir())


def test_a_run_that_was_killed_before_its_first_state_begins_again(tiny_llama, tmp_path):
    out = tmp_path / "student"
    with pytest.raises(Killed):
        run(tiny_llama, out, PLAIN, report=killed_at(2))
    assert [path.name for path in tmp_path.iterdir()] == ["student.distill.jsonl"]


def test_other_settings_are_refused_by_name_and_restart_begins_anew(tiny_llama, tmp_path):
    out, rows = tmp_path / "student", []
    with pytest.raises(Killed):
        run(tiny_llama, out, PLAIN, report=killed_at(3), save_every=1)
    with pytest.raises(QCompressError, match=r"started with learning_rate 0.003 \(now 0.001\); .*--restart"):
        run(tiny_llama, out, PLAIN | {"learning_rate": 1e-3}, save_every=1)
    run(tiny_llama, out, PLAIN | {"learning_rate": 1e-3}, report=rows.append, restart=True)
    assert next(row["step"] for row in rows if "loss" in row) == "1/5" and not work_path(out).exists()


def test_a_student_that_was_written_before_the_kill_is_not_made_again(tiny_llama, tmp_path, monkeypatch):
    out = tmp_path / "student"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingJournal, "discard", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(tiny_llama, out, PLAIN)
    before, rows = files(out), []
    row = run(tiny_llama, out, PLAIN, report=rows.append)
    assert files(out) == before and rows == [] and not work_path(out).exists()
    assert {key: value for key, value in row.items() if key != "seconds"} == Checkpoint(out).record["rows"][0]


def test_a_full_disk_is_one_line_and_the_last_state_stays(tiny_llama, tmp_path, monkeypatch):
    out = tmp_path / "student"
    write = journals.write_atomic

    def full(path: Path, *pieces: Any, **kind: Any) -> None:
        if path.name.startswith("state-0-00000003"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *pieces, **kind)

    with monkeypatch.context() as patch:
        patch.setattr(journals, "write_atomic", full)
        with pytest.raises(QCompressError, match=r"the disk is full, .* continues"):
            run(tiny_llama, out, PLAIN, save_every=1)
    assert read_json(work_path(out) / JOURNAL)["stages"][0]["step"] == 2


def test_a_diverged_run_names_step_and_cure_and_keeps_the_last_good_state(tiny_llama, tmp_path):
    out = tmp_path / "student"
    with pytest.raises(QCompressError, match=r"step \d+: loss .*lower --learning-rate 1e\+30.*--restart"):
        run(tiny_llama, out, PLAIN | {"learning_rate": 1e30}, save_every=1)
    assert not out.exists() and read_json(work_path(out) / JOURNAL)["stages"][0]["step"] >= 1


def test_the_work_of_a_run_that_gained_nothing_does_not_stay(tiny_llama, tmp_path):
    with pytest.raises(QCompressError, match="steps did not improve the student"):
        run(tiny_llama, tmp_path / "student", PLAIN | {"learning_rate": 0.5, "steps": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["student.distill.jsonl"]


def test_only_one_process_may_be_at_work(tmp_path):
    with (
        journals.open_journal(tmp_path / "student", {}, 0),
        pytest.raises(QCompressError, match=r"another process .* writes there"),
        journals.open_journal(tmp_path / "student", {}, 0),
    ):
        pass


def test_a_journal_lists_only_states_that_are_on_the_disk(tmp_path):
    import torch

    with journals.open_journal(tmp_path / "student", {"a": 1}, 0) as journal:
        saver = StateSaver(journal, 0, every=2)
        assert saver.load() is None and [saver.due(step) for step in (1, 2, 3, 4)] == [False, True, False, True]
        saver.keep(Progress(2, [{"loss": 0.1}], 2, 0.5), {"x": torch.arange(3)})
        saver.keep(Progress(4, [{"loss": 0.2}], 2, 0.5), {"x": torch.arange(4.0)})
    again = TrainingJournal(tmp_path / "student", {"a": 1})
    again.load()
    assert again.progress(0) == Progress(4, [{"loss": 0.2}], 2, 0.5) and again.progress(1) is None
    assert torch.equal(again.tensors(0)["x"], torch.arange(4.0))
    assert [path.name for path in work_path(tmp_path / "student").glob("state*")] == [again.file]
