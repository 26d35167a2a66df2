"""Every published file has a digest: a changed, missing or added file is a finding, and so is a missing digest."""

import json
import shutil
from pathlib import Path

import pytest

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import RECORD, Checkpoint
from compress.checkpoint.record import DIGESTS, file_digests, read_digests, record_text, refresh_file_digests

ERRORS = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


@pytest.fixture
def path(good, tmp_path) -> Path:
    return Path(shutil.copytree(good("llama", "awq"), tmp_path / "model"))


def rows(path: Path, rule: str, **options) -> list[dict]:
    return [row for row in check_checkpoint(path, **options) if row["rule"] == rule]


def test_every_file_but_the_digests_has_a_digest(path):
    names = {file.name for file in path.iterdir()} - {DIGESTS}
    assert read_digests(path)["files"].keys() == names >= {"config.json", "model.safetensors", *ERRORS}


@pytest.mark.parametrize("name", ERRORS)
def test_a_changed_or_missing_file_is_an_error(path, name):
    with (path / name).open("a") as file:
        file.write(" ")
    (row,) = rows(path, "D3")
    assert (row["file"], row["level"]) == (name, "error") and "vLLM" in row["consequence"]
    (path / name).unlink()
    assert rows(path, "D3")[0]["value"] == "missing"


@pytest.mark.parametrize(
    ("name", "level"),
    [("README.md", "warning"), ("adapter.bin", "error"), ("model.py", "error"), ("notes/x.txt", "warning")],
)
def test_an_added_file_is_an_error_if_loaders_read_it(path, name, level):
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("x")
    (row,) = rows(path, "D3")
    assert (row["file"], row["value"], row["level"]) == (name, "added", level)


def test_a_hidden_file_is_not_a_finding(path):
    (path / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert not rows(path, "D3")


def test_a_reformatted_config_is_only_a_warning(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config))
    assert [row["level"] for row in rows(path, "D3")] == ["warning"] and not rows(path, "D2")


def test_another_dtype_in_the_header_is_an_error(path):
    raw = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["model.norm.weight"]["dtype"] = "BF16"
    text = json.dumps(header, separators=(",", ":")).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    (row,) = rows(path, "D1")
    assert row["tensor"] == "model.norm.weight" and row["value"] == "bfloat16 64"


def test_missing_digests_beside_our_record_are_an_error_with_a_source(path, good):
    (path / RECORD).write_text(record_text("quantize", {}))
    (path / DIGESTS).unlink()
    assert [row["level"] for row in rows(path, "D4")] == ["warning"]
    assert [row["level"] for row in rows(path, "D4", source=good("llama", "plain"))] == ["error"]


def test_a_missing_part_of_the_digests_is_an_error(path):
    (path / RECORD).write_text(record_text("quantize", {}))
    refresh_file_digests(path)
    assert not rows(path, "D4") and not rows(path, "D3")
    digests = json.loads((path / DIGESTS).read_text())
    del digests["files"]
    (path / DIGESTS).write_text(json.dumps(digests))
    assert rows(path, "D4")[0]["value"] == "no files"


def test_digests_of_the_first_version_are_complete_with_an_old_record(path):
    record = json.loads(record_text("quantize", {}))
    del record["digests"]
    (path / RECORD).write_text(json.dumps(record))
    digests = json.loads((path / DIGESTS).read_text())
    (path / DIGESTS).write_text(json.dumps({part: digests[part] for part in ("config", "tensors")}))
    assert not [row for row in check_checkpoint(path) if row["level"] == "error"]


def test_the_digest_of_a_weight_file_is_that_of_its_header(path):
    before = file_digests(path)["model.safetensors"]
    info = Checkpoint(path).tensors["model.norm.weight"]
    with info.file.open("r+b") as file:
        file.seek(info.offset)
        file.write(b"\0\0")
    assert file_digests(path)["model.safetensors"] == before
    assert [row["tensor"] for row in rows(path, "D1")] == ["model.norm.weight"]
