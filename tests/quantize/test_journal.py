import os
import re
import shutil

import pytest

from compress.checkpoint.read import read_header
from compress.checkpoint.write import partial_path
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.core.lock import output_lock
from compress.quantize.blocks.activations import ActivationStore
from compress.quantize.job import RunOptions, quantize_checkpoint
from compress.quantize.journal import work_path
from compress.quantize.log import log_path

pytestmark = pytest.mark.slow  # runs whole jobs


def settings(method="gptq", **changes):
    return QuantizeConfig(**({"method": method, "format": "awq", "samples": 80, "seq_len": 32} | changes))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killed(BaseException):
    """An error that `except Exception` does not catch."""


def stop_after(block):
    def report(row):
        if row.get("block") == block:
            raise Killed

    return report


def interrupted(model, out, block="1/2", **changes):
    """Run a job and end it after a block, as a kill would."""
    with pytest.raises(Killed):
        quantize_checkpoint(model, out, settings(**changes), RunOptions(report=stop_after(block)))
    return out


def leftovers(out):
    return [path for path in (partial_path(out), work_path(out)) if path.exists()]


@pytest.mark.parametrize(("method", "error_correction"), [("rtn", 0), ("awq+gptq", 0), ("awq+gptq", 0.5)])
@pytest.mark.parametrize("block", ["1/2", "2/2"])
def test_a_resumed_job_writes_the_bytes_of_an_uninterrupted_one(tiny_qwen2, tmp_path, method, error_correction, block):
    changes = {"method": method, "error_correction": error_correction}
    quantize_checkpoint(tiny_qwen2, tmp_path / "whole", settings(**changes))
    out, lines = interrupted(tiny_qwen2, tmp_path / "out", block, **changes), []
    for shard in partial_path(out).glob("*.safetensors"):
        assert shard.stat().st_size == (tmp_path / "whole" / shard.name).stat().st_size
    quantize_checkpoint(tiny_qwen2, out, settings(**changes), RunOptions(report=lines.append))
    assert contents(out) == contents(tmp_path / "whole") and leftovers(out) == []
    assert "base_model_relation: quantized" in (out / "README.md").read_text()
    done = int(block[0])
    assert [line["block"] for line in lines if "block" in line] == ["1/2", "2/2"][done:]


def test_half_written_files_never_change_the_result(tiny_llama, tmp_path):
    quantize_checkpoint(tiny_llama, tmp_path / "whole", settings())
    out = interrupted(tiny_llama, tmp_path / "out")
    half_written = work_path(out) / "activations-0-0.bin"
    half_written.write_bytes(b"\x7f" * 1000)
    (work_path(out) / ".journal.json.9999999.partial").write_text("{")
    (partial_path(out) / "config.json").write_text("{")
    quantize_checkpoint(tiny_llama, out, settings())
    assert contents(out) == contents(tmp_path / "whole")


def test_the_same_command_finishes_a_job_killed_before_its_clean_up(tiny_llama, tmp_path):
    out = interrupted(tiny_llama, tmp_path / "out", "2/2")
    shutil.copytree(work_path(out), tmp_path / "kept")
    row = quantize_checkpoint(tiny_llama, out, settings())
    before = contents(out)
    (tmp_path / "kept").rename(work_path(out))
    again = quantize_checkpoint(tiny_llama, out, settings())
    assert contents(out) == before and leftovers(out) == [] and again | {"seconds": 0} == row | {"seconds": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_size": 32}, r"group_size 64 \(now 32\)"),
        ({"seed": 1}, r"seed 0 \(now 1\)"),
        ({"compute_dtype": "bfloat16"}, r"compute_dtype float32 \(now bfloat16\)"),
        ({"method": "awq"}, r"method gptq \(now awq\)"),
    ],
)
def test_changed_settings_are_refused_with_both_values(tiny_llama, tmp_path, changes, words):
    out = interrupted(tiny_llama, tmp_path / "out", compute_dtype="float32")
    changes = {"compute_dtype": "float32"} | changes
    with pytest.raises(QCompressError, match=f"was started with {words}.*--restart"):
        quantize_checkpoint(tiny_llama, out, settings(**changes))
    assert len(leftovers(out)) == 2
    quantize_checkpoint(tiny_llama, out, settings(**changes), RunOptions(restart=True))
    assert leftovers(out) == []


def test_a_changed_source_is_refused(tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    out = interrupted(source, tmp_path / "out")
    (source / "config.json").write_text((source / "config.json").read_text() + " ")
    with pytest.raises(QCompressError, match="was started with source sha256:"):
        quantize_checkpoint(source, out, settings())


def test_changed_activations_are_refused(tiny_llama, tmp_path):
    out = interrupted(tiny_llama, tmp_path / "out")
    file = ActivationStore(work_path(out)).block_inputs(1, []).path
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    with pytest.raises(QCompressError, match=r"activations-1-0.bin: the file has changed since.*--restart"):
        quantize_checkpoint(tiny_llama, out, settings())


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_finished_block_that_changed_on_disk_is_refused_by_name(tiny_llama, tmp_path, method):
    out = interrupted(tiny_llama, tmp_path / "out", "2/2", method=method)
    file = partial_path(out) / "model.safetensors"
    info = read_header(file)["model.layers.1.mlp.down_proj.qweight"]
    data = bytearray(file.read_bytes())
    data[info.offset] ^= 1
    file.write_bytes(data)
    with pytest.raises(QCompressError, match=r"layers\.1\.mlp\.down_proj\.qweight changed since.*--restart"):
        quantize_checkpoint(tiny_llama, out, settings(method=method))
    quantize_checkpoint(tiny_llama, out, settings(method=method), RunOptions(restart=True))
    quantize_checkpoint(tiny_llama, tmp_path / "whole", settings(method=method))
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_source_that_changes_during_the_run_is_refused(tiny_llama, tmp_path, name):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    data = bytearray((source / name).read_bytes())

    def change(row):
        if row.get("block") == "1/2":
            data[-2] ^= 1
            (source / name).write_bytes(data)

    with pytest.raises(QCompressError, match="source: the files changed during the run"):
        quantize_checkpoint(source, tmp_path / "out", settings("rtn"), RunOptions(report=change))
    assert not (tmp_path / "out").exists() and leftovers(tmp_path / "out") == []


def test_a_damaged_journal_is_refused_with_the_cure(tiny_llama, tmp_path):
    out = interrupted(tiny_llama, tmp_path / "out")
    (work_path(out) / "journal.json").write_text("{")
    for restart in (False, True):
        words = rf"journal\.json: is damaged, or .* did not write it; remove {re.escape(str(work_path(out)))} and run"
        with pytest.raises(QCompressError, match=words):
            quantize_checkpoint(tiny_llama, out, settings(), RunOptions(restart=restart))
    shutil.rmtree(work_path(out))
    quantize_checkpoint(tiny_llama, out, settings())
    assert leftovers(out) == []


def test_files_of_other_programs_in_the_work_folder_stay(tiny_llama, tmp_path):
    note = work_path(tmp_path / "out") / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(QCompressError, match=r"another job or program, because it contains note\.txt"):
        quantize_checkpoint(tiny_llama, tmp_path / "out", settings("rtn"))
    note.unlink()
    out = interrupted(tiny_llama, tmp_path / "out")
    note.write_text("mine")
    quantize_checkpoint(tiny_llama, out, settings())
    assert note.read_text() == "mine" and leftovers(out) == [work_path(out)]


@pytest.mark.parametrize("restart", [False, True])
def test_the_folder_of_another_job_is_never_removed(tiny_llama, tmp_path, restart):
    note = partial_path(tmp_path / "out") / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(QCompressError, match="another job"):
        quantize_checkpoint(tiny_llama, tmp_path / "out", settings("rtn"), RunOptions(restart=restart))
    assert note.read_text() == "mine"


def test_a_second_process_on_the_same_folder_is_refused(tiny_llama, tmp_path):
    out = interrupted(tiny_llama, tmp_path / "out")
    with output_lock(out), pytest.raises(QCompressError, match=rf"out: another process \({os.getpid()}\) writes there"):
        quantize_checkpoint(tiny_llama, out, settings(), RunOptions(restart=True))
    assert len(leftovers(out)) == 2


def test_a_job_that_fails_before_its_first_block_leaves_no_files(tiny_llama, tmp_path):
    with pytest.raises(Killed):
        quantize_checkpoint(
            tiny_llama, tmp_path / "out", settings(), RunOptions(report=lambda row: (_ for _ in ()).throw(Killed))
        )
    assert list(tmp_path.iterdir()) == []


def test_seconds_are_in_the_log_and_not_in_the_checkpoint(tiny_llama, tmp_path):
    out = tmp_path / "out"
    quantize_checkpoint(tiny_llama, out, settings())
    log = log_path(out).read_text().splitlines()
    assert len(log) == 2 + 14 and all('"seconds"' in line for line in log)
    assert "seconds" not in (out / "qcompress.json").read_text()


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("error_correction", [0, 0.5])
def test_activation_memory_never_changes_a_byte(tiny_qwen2, tmp_path, error_correction, compute_dtype):
    for name, limit in (("lockstep", 10**9), ("replay", 0)):
        config = settings("awq+gptq", error_correction=error_correction, compute_dtype=compute_dtype)
        quantize_checkpoint(tiny_qwen2, tmp_path / name, config, RunOptions(activation_memory=limit))
    assert contents(tmp_path / "lockstep") == contents(tmp_path / "replay")


def test_a_new_job_replaces_the_log_of_an_earlier_job(tiny_llama, tmp_path):
    out = tmp_path / "out"
    log_path(out).write_text('{"block": "of an earlier job", "error": 0.1, "rtn_error": 0.2}\n')
    quantize_checkpoint(tiny_llama, out, settings())
    assert "earlier" not in log_path(out).read_text()
