"""A backend as a whole job: what it gets, what is kept, what is refused. The backend is fake, its process is real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.backends.job import BackendRun, quantize_with_backend
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.formats import quantized_weight
from compress.checkpoint.read import Checkpoint
from compress.core.backend_config import BackendConfig
from compress.core.config import QuantizeConfig
from compress.core.errors import GateFailure, QCompressError
from compress.core.lock import output_lock
from compress.quantize.calibrate import job_windows
from compress.quantize.job import quantize_checkpoint
from tests.processes import processes_in, running, wait_for

CONFIG = BackendConfig(backend="autoawq", group_size=32, samples=4, seq_len=16)
LINEAR = "model.layers.0.self_attn.q_proj"


def run(model, out, report=lambda row: None, config=CONFIG):
    return quantize_with_backend(model, out, config, BackendRun(python=Path(sys.executable), report=report))


def left(folder):
    """The names beside the output that a job could leave, hidden ones too."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("drivers", "ready"))


def test_a_backend_result_is_published_with_its_tensors_and_a_record(tiny_llama, packed, fake, tmp_path):
    fake("works")
    row = run(tiny_llama, tmp_path / "out")
    result = Checkpoint(tmp_path / "out")
    assert (row["backend"], row["method"], row["group_size"], row["quantize_seconds"]) == ("autoawq", "awq", 32, 1.5)
    for part in ("codes", "scales", "zeros"):
        ours, theirs = (getattr(quantized_weight(one, LINEAR), part) for one in (Checkpoint(packed), result))
        assert ours.equal(theirs)
    record = result.record
    assert record["backend"]["name"] == "autoawq" and "python" in record["backend"]["versions"]
    assert record["calibration"]["n_samples"] == 4 and record["source"]["digest"] == Checkpoint(tiny_llama).digest
    assert record["completed"] == []
    assert [row for row in check_checkpoint(tmp_path / "out", source=tiny_llama) if row["level"] == "error"] == []
    assert left(tmp_path) == ["out", "out.backend.log"]


def test_a_backend_reads_the_windows_that_our_methods_read(tiny_llama, fake, tmp_path):
    fake("works")
    rows = []
    run(tiny_llama, tmp_path / "out", rows.append)
    own_config = QuantizeConfig(method="awq", group_size=32, samples=4, seq_len=16)
    quantize_checkpoint(tiny_llama, tmp_path / "own", own_config)
    own, theirs = (Checkpoint(tmp_path / name).record["calibration"] for name in ("own", "out"))
    assert own["digest"] == theirs["digest"] and own["start"] == theirs["start"]
    tokenizer = Checkpoint(tiny_llama).tokenizer
    ids = job_windows(tokenizer, CONFIG, theirs["start"]["token"]).ids
    steps = [row["backend"] for row in rows if "backend" in row]
    assert f"4 windows of 16, the first begins with {ids[0, :3].tolist()}" in steps


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("dies", "ended by SIGKILL"),
        ("raises", "ValueError: the blocks are"),
        ("writes half", "model.safetensors"),
        ("writes nothing", "wrote no checkpoint"),
        ("lies about its format", "gptq, but awq was requested"),
        ("lies about its group size", "groups of 128, but 4 bits in groups of 32 were requested"),
        ("fills the disk", "File too large|SIGXFSZ"),
        ("writes a link", "wrote a link, tokenizer.json"),
        ("writes no result", "no sound result.json"),
        ("writes a false result", "no sound result.json"),
    ],
)
def test_a_faulty_backend_is_one_line_and_leaves_only_its_log(tiny_llama, fake, tmp_path, behaviour, message):
    fake(behaviour)
    with pytest.raises(QCompressError, match=message) as error:
        run(tiny_llama, tmp_path / "out")
    assert "\n" not in error.value.message
    assert left(tmp_path) == ["out.backend.log"]
    fake("works")
    run(tiny_llama, tmp_path / "out")  # the same command starts over
    assert left(tmp_path) == ["out", "out.backend.log"]


def test_a_result_that_breaks_a_rule_is_not_published(tiny_llama, fake, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.backends.publish.complete_config", lambda folder, source: [])
    fake("changes the model")
    with pytest.raises(GateFailure, match="C10 rms_norm_eps"):
        run(tiny_llama, tmp_path / "out")
    assert left(tmp_path) == ["out.backend.log"]


def test_config_is_completed_only_where_check_reports_a_fault(tiny_llama, fake, tmp_path):
    fake("forgets keys")
    run(tiny_llama, tmp_path / "out")
    result = Checkpoint(tmp_path / "out")
    assert {row["key"] for row in result.record["completed"]} == {"torch_dtype", "rope_theta"}
    assert result.config["torch_dtype"] == "float16" and result.config["rope_theta"] == 5000.0


def test_a_config_that_contradicts_itself_is_completed_before_it_is_opened(tiny_llama, fake, tmp_path):
    fake("contradicts itself")
    run(tiny_llama, tmp_path / "out")
    assert Checkpoint(tmp_path / "out").config["torch_dtype"] == "float16"


def test_output_of_a_backend_is_kept_in_a_log_of_limited_size(tiny_llama, fake, tmp_path):
    fake("floods stderr")
    run(tiny_llama, tmp_path / "out")
    assert 16_000_000 <= (tmp_path / "out.backend.log").stat().st_size < 17_500_000


def test_progress_is_bounded_and_printable(tiny_llama, fake, tmp_path):
    fake("floods progress")
    rows = []
    run(tiny_llama, tmp_path / "out", rows.append)
    steps = [row["backend"] for row in rows if "backend" in row]
    assert len(steps) <= 1000 and all(step.isprintable() for step in steps)


def test_a_backend_gets_no_secrets_and_no_python_variables(tiny_llama, fake, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "MY_API_KEY", "PYTHONPATH", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, os.environ.get(name, "secret"))
    fake("prints its variables")
    run(tiny_llama, tmp_path / "out")
    (line,) = [line for line in (tmp_path / "out.backend.log").read_text().splitlines() if "VARIABLES" in line]
    assert not any(name in line for name in ("HF_TOKEN", "MY_API_KEY", "PYTHONPATH", "AWS_SECRET"))
    assert all(name in line for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "GPTQMODEL_CPU_WORKERS"))
    assert line.endswith(".out.backend/scratch")


PROGRAM = """
import sys
from pathlib import Path
import compress.backends.table as table
table.DRIVERS = Path(sys.argv.pop(1))
from compress.cli import cli
cli()
"""


def start_command(model, out, drivers):
    """`qcompress quantize --backend` as a process of its own, with the fake driver."""
    options = ["--backend", "autoawq", "--backend-python", sys.executable, "--group-size", "32"]
    sizes = ["--samples", "4", "--seq-len", "16", "-o", str(out)]
    arguments = [str(drivers), "quantize", str(model), *options, *sizes]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=-3, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["hangs", "ignores SIGTERM"])
@pytest.mark.parametrize("number", [9, 15, 2])
def test_no_process_and_no_checkpoint_outlives_a_killed_command(tiny_llama, fake, tmp_path, behaviour, number):
    drivers, out = fake(behaviour), tmp_path / "out"
    with start_command(tiny_llama, out, drivers) as command:
        wait_for(lambda: len(processes_in(tmp_path / "ready")) == 2)
        command.send_signal(number)
        _, errors = command.communicate()
    wait_for(lambda: not any(map(running, processes_in(tmp_path / "ready"))), 10)
    assert not out.exists()
    if number != 9:
        assert command.returncode == 128 + number and "nothing was kept" in errors
        assert left(tmp_path) == ["out.backend.log"]
    fake("works")
    with start_command(tiny_llama, out, drivers) as command:
        _, errors = command.communicate()
    assert command.returncode == 0, errors
    assert left(tmp_path) == ["out", "out.backend.log"]


def test_work_that_our_own_method_left_is_not_lost(tiny_llama, fake, tmp_path):
    fake("works")
    work = tmp_path / ".out.quantize"
    work.mkdir()
    (work / "journal.json").write_text(json.dumps({"settings": {}, "notes": {}, "blocks": [{}]}))
    with pytest.raises(QCompressError, match="unfinished work there; add --restart"):
        run(tiny_llama, tmp_path / "out")
    assert work.is_dir()
    quantize_with_backend(tiny_llama, tmp_path / "out", CONFIG, BackendRun(python=Path(sys.executable), restart=True))
    assert not work.exists() and (tmp_path / "out").is_dir()


def test_a_foreign_work_folder_is_not_removed(tiny_llama, fake, tmp_path):
    fake("works")
    folder = tmp_path / ".out.backend"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(QCompressError, match="belongs to another program"):
        run(tiny_llama, tmp_path / "out")
    assert (folder / "diary.txt").read_text() == "mine"


def test_a_foreign_log_is_not_replaced(tiny_llama, fake, tmp_path):
    fake("works")
    (tmp_path / "out.backend.log").write_text("mine")
    with pytest.raises(QCompressError, match=r"out\.backend\.log: exists"):
        run(tiny_llama, tmp_path / "out")
    assert left(tmp_path) == ["out.backend.log"]


def test_two_runs_cannot_write_one_output(tiny_llama, fake, tmp_path):
    fake("works")
    with output_lock(tmp_path / "out"), pytest.raises(QCompressError, match="writes there now"):
        run(tiny_llama, tmp_path / "out")


def test_a_method_that_needs_an_accelerator_is_refused_before_any_work(tiny_llama, tmp_path):
    config = BackendConfig(backend="llm-compressor", method="awq")
    with pytest.raises(QCompressError, match="cannot run on a CPU: it pins memory"):
        quantize_with_backend(tiny_llama, tmp_path / "out", config, BackendRun(python=Path(sys.executable)))
    assert left(tmp_path) == []


def test_a_missing_backend_is_refused_with_the_command_that_installs_it(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("QCOMPRESS_BACKENDS", str(tmp_path / "none"))
    with pytest.raises(QCompressError, match="run `qcompress backends install autoawq`"):
        quantize_with_backend(tiny_llama, tmp_path / "out", CONFIG)
    assert left(tmp_path) == []
