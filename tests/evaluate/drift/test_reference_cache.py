"""A reference is read once for many candidates, and never mistaken for another."""

import json
import shutil
from dataclasses import replace

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.units import format_bytes
from compress.evaluate.drift import hidden_states as reading
from compress.evaluate.drift import reference_cache
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.hidden_states import make_states, read_windows
from compress.evaluate.drift.windows import evaluation_windows


def read_names(reports):
    return [row["reads"] for row in reports if row.get("block", "").startswith("0/")]


@pytest.fixture
def filled(tiny_llama, quantized, windows, tmp_path):
    """A cache of tiny_llama on `windows`, and the rows that filled it."""
    folder = tmp_path / "cache"
    return folder, compare_rows(tiny_llama, [quantized["awq"]], windows, cache=folder)


def test_cached_rows_are_equal_without_running_the_reference(tiny_llama, quantized, windows, filled):
    folder, first = filled
    reports = []
    again = compare_rows(tiny_llama, [quantized["awq"]], windows, cache=folder, report=reports.append)
    assert again == first == compare_rows(tiny_llama, [quantized["awq"]], windows)
    assert read_names(reports) == ["awq"]
    assert sorted(file.name for file in folder.iterdir()) == ["hidden.safetensors", "manifest.json"]


def test_the_start_token_is_measured_once_per_cache(tiny_llama, quantized, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox asks a question; the lazy dog answers it in a few words.\n" * 20)
    size = {"n_samples": 3, "seq_len": 32, "cache": tmp_path / "cache"}
    first = evaluation_windows(tiny_llama, [], str(text), **size)
    compare_rows(tiny_llama, [quantized["gptq"]], first, cache=size["cache"])
    monkeypatch.setattr("compress.evaluate.drift.windows.heldout_start", None)
    again = evaluation_windows(tiny_llama, [], str(text), **size)
    assert again.manifest == first.manifest and again.ids.equal(first.ids)


def test_another_reference_and_other_windows_are_rejected_by_name(
    tiny_llama, tiny_qwen2, windows, make_windows, filled
):
    folder, _ = filled
    with pytest.raises(
        QCompressError, match=r"another run, reference: sha256:\w+… stored, sha256:\w+… now; pass another"
    ):
        compare_rows(tiny_qwen2, [tiny_llama], windows, cache=folder)
    with pytest.raises(QCompressError, match="another run, n_samples: 5 stored, 4 now"):
        compare_rows(tiny_llama, [tiny_llama], make_windows(n_samples=4), cache=folder)
    with pytest.raises(QCompressError, match="another run, windows: "):
        compare_rows(tiny_llama, [tiny_llama], make_windows(seed=9), cache=folder)


def test_a_cache_serves_masks_that_score_other_tokens(tiny_llama, quantized, windows, filled):
    folder, _ = filled
    few = replace(windows, mask=windows.mask & (windows.ids % 2 == 0))
    cached = compare_rows(tiny_llama, [quantized["awq"]], few, cache=folder)
    assert cached == compare_rows(tiny_llama, [quantized["awq"]], few)


def flip_a_bit(folder):
    file = folder / "hidden.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def cut_the_end(folder):
    file = folder / "hidden.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "checksum does not match"),
        (cut_the_end, "the header lists"),
        (lambda folder: (folder / "hidden.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "does not belong to a reference cache"),
    ],
)
def test_a_damaged_cache_is_rejected_and_named(tiny_llama, windows, filled, damage, words):
    folder, _ = filled
    damage(folder)
    with pytest.raises(QCompressError, match=words) as caught:
        compare_rows(tiny_llama, [tiny_llama], windows, cache=folder)
    assert str(folder) in str(caught.value)


def test_states_without_a_manifest_are_computed_again(tiny_llama, quantized, windows, filled):
    folder, first = filled
    (folder / "manifest.json").unlink()
    flip_a_bit(folder)
    assert compare_rows(tiny_llama, [quantized["awq"]], windows, cache=folder) == first


def test_partial_files_of_a_killed_write_are_removed(tiny_llama, windows, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / ".hidden.safetensors.9999999.partial").write_bytes(b"half")
    compare_rows(tiny_llama, [tiny_llama], windows, cache=folder)
    assert sorted(file.name for file in folder.iterdir()) == ["hidden.safetensors", "manifest.json"]


def test_a_folder_with_other_files_is_rejected_before_any_work(tiny_llama, windows, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    reports = []
    with pytest.raises(QCompressError, match=r"contains notes\.txt"):
        compare_rows(tiny_llama, [tiny_llama], windows, cache=tmp_path, report=reports.append)
    assert not reports


def test_a_full_disk_is_rejected_before_any_work(tiny_llama, windows, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    needed = 5 * 24 * 64 * 4
    with pytest.raises(
        QCompressError, match=f"the hidden states need {format_bytes(needed, short=False)}, but .* has 10 B free"
    ):
        compare_rows(tiny_llama, [tiny_llama], windows, cache=tmp_path / "cache")


def test_a_failed_write_leaves_no_manifest(tiny_llama, windows, tmp_path, monkeypatch):
    def fail(*arguments, **kind):
        raise OSError("no space")

    monkeypatch.setattr(reference_cache, "write_atomic", fail)
    with pytest.raises(OSError, match="no space"):
        compare_rows(tiny_llama, [tiny_llama], windows, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_states_on_disk_equal_states_in_memory(tiny_llama, windows, monkeypatch, tmp_path):
    expected = read_windows(Checkpoint(tiny_llama), windows.ids).hidden
    monkeypatch.setattr(reading, "MEMORY_STATES", 100)
    monkeypatch.setattr(reading.tempfile, "tempdir", str(tmp_path))
    assert read_windows(Checkpoint(tiny_llama), windows.ids).hidden.equal(expected)
    assert not list(tmp_path.iterdir())


def test_states_in_a_file_keep_their_values(monkeypatch):
    monkeypatch.setattr(reading, "MEMORY_STATES", 0)
    states = make_states((3, 5, 2))
    states.fill_(2.5)
    assert states.shape == (3, 5, 2) and states.sum() == 75


def test_the_manifest_has_the_reference_sizes_and_dtype(tiny_llama, filled):
    folder, rows = filled
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["reference"] == rows[0]["digest"]
    assert (manifest["n_samples"], manifest["seq_len"], manifest["width"], manifest["dtype"]) == (5, 24, 64, "float32")
