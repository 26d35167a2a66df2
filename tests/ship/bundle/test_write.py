import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from compress.core.errors import GateFailure, QCompressError
from compress.ship.bundle import write
from compress.ship.bundle.settings import ShipConfig
from compress.ship.bundle.sums import entries
from compress.ship.bundle.verify import verify_bundle
from compress.ship.bundle.write import plan_bundle, ship, write_model

CONFIG = ShipConfig(hardware="orin-nano", name="tiny", context=512)


def contents(folder):
    return {name: path.read_bytes() for name, path in entries(folder) if path.is_file()}


def test_a_bundle_has_the_model_byte_for_byte(session_bundle, tiny_awq):
    copied = contents(session_bundle / "model")
    assert copied == contents(tiny_awq)
    assert all(not (session_bundle / "model" / name).samefile(tiny_awq / name) for name in copied)


def test_a_copy_elsewhere_keeps_its_digests(bundle):
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=bundle, check=False).returncode == 0
    assert verify_bundle(bundle) == []


def test_equal_input_gives_equal_bytes(session_bundle, tiny_awq, make_bundle, tmp_path):
    again = make_bundle(tiny_awq, tmp_path / "again")
    assert contents(again) == contents(session_bundle)


def test_files_are_readable_by_the_user_of_the_container(session_bundle):
    modes = {name: path.stat().st_mode & 0o777 for name, path in entries(session_bundle)}
    assert {name for name, mode in modes.items() if mode == 0o755} == {"LICENSES", "install.sh", "model", "smoke.py"}
    assert {*modes.values()} == {0o755, 0o644}


@pytest.mark.parametrize("fault", ["a file", "a full folder", "a link"])
def test_what_is_there_is_not_replaced(tiny_awq, tmp_path, fault):
    out = tmp_path / "out"
    if fault == "a file":
        out.write_text("mine")
    elif fault == "a link":
        (tmp_path / "target").mkdir()
        out.symlink_to(tmp_path / "target")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(QCompressError, match="out"):
        ship(tiny_awq, out, CONFIG)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_run_that_fails_leaves_nothing(tiny_awq, tmp_path, monkeypatch):
    def fail(*_):
        raise QCompressError("no reference")

    monkeypatch.setattr(write, "make_reference", fail)
    with pytest.raises(QCompressError, match="no reference"):
        ship(tiny_awq, tmp_path / "out", CONFIG)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_replaced(tiny_awq, tmp_path):
    left = tmp_path / ".out.partial"
    (left / "out" / "model").mkdir(parents=True)
    (left / ".qcompress-unfinished").touch()
    ship(tiny_awq, tmp_path / "out", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_with_an_error_is_not_shipped(tiny_awq, tmp_path):
    broken = shutil.copytree(tiny_awq, tmp_path / "broken")
    file = broken / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(GateFailure, match="ship a checkpoint that passes qcompress check"):
        ship(broken, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_changes_while_it_is_copied_is_not_shipped(tiny_awq, tmp_path, monkeypatch):
    source = shutil.copytree(tiny_awq, tmp_path / "source")
    original = write.copy_model

    def change(checkpoint, target):
        checkpoint.digest  # noqa: B018  computed before the change
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config))
        original(checkpoint, target)

    monkeypatch.setattr(write, "copy_model", change)
    with pytest.raises(QCompressError, match="the files changed during the run"):
        ship(source, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_that_is_too_large_for_the_board_is_not_shipped(gguf_bundle, tmp_path):
    plan = plan_bundle(gguf_bundle.parent / "gptq", replace(CONFIG, runtime="llama.cpp"))
    plan = replace(plan, fit=replace(plan.fit, usable=plan.fit.needed))
    with pytest.raises(GateFailure, match=r"as a \.gguf file it does not fit on Jetson Orin Nano 8GB: .* too much"):
        write_model(plan, tmp_path)


def test_an_unknown_board_is_refused_with_the_nearest_name(tiny_awq, tmp_path):
    with pytest.raises(QCompressError, match="did you mean orin-nano"):
        ship(tiny_awq, tmp_path / "out", replace(CONFIG, hardware="orin-nanoo"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a b"}, "--name 'a b'"),
        ({"name": "../x"}, "--name"),
        ({"image": "UPPER CASE"}, "is no image reference"),
        ({"image": "a:b", "image_file": "x.tar"}, "leave --image out"),
        ({"runtime": "llama.cpp", "tensor_parallel_size": 2}, "--tensor-parallel-size"),
        ({"runtime": "llama.cpp", "kv_cache_dtype": "fp8"}, "--kv-cache-dtype"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(QCompressError, match=message):
        replace(CONFIG, **settings)
