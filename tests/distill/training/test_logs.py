"""What a training leaves to read: JSON lines beside the student, event files where they are asked for."""

import json
import sys

import pytest

from compress.core.errors import QCompressError
from compress.distill.training.logs import log_path, logged, write_scalars

STEP = {"stage": "task", "step": "3/6", "loss": 1.5, "tokens_per_second": 10.0, "eta": 4}


def test_every_step_is_a_json_line_and_other_rows_are_only_reported(tmp_path):
    seen: list[dict] = []
    for _ in range(2):
        with logged(seen.append, tmp_path / "student", None) as tell:
            tell({"windows": 3})
            tell(STEP)
    assert [json.loads(line) for line in log_path(tmp_path / "student").read_text().splitlines()] == [STEP, STEP]
    assert seen == [{"windows": 3}, STEP] * 2


def test_numbers_go_to_tensorboard_by_stage_and_step():
    class Writer:
        def __init__(self):
            self.seen = []

        def add_scalar(self, *row):
            self.seen.append(row)

    writer = Writer()
    write_scalars(writer, STEP)
    write_scalars(writer, {"step": "1/6", "loss": 2.0})
    assert writer.seen == [("task/loss", 1.5, 3), ("task/tokens_per_second", 10.0, 3), ("loss", 2.0, 1)]


def test_a_log_dir_without_tensorboard_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(
            QCompressError, match=r"--log-dir: the package tensorboard is missing; pip install 'qcompress\[train\]'"
        ),
        logged(print, tmp_path / "student", str(tmp_path / "logs")),
    ):
        pass


def test_event_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    with logged(lambda row: None, tmp_path / "student", str(tmp_path / "logs")) as tell:
        tell(STEP)
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))
