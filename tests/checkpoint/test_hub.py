import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from compress.checkpoint.hub import hub_name, model_name, numbered_names, resolve_model
from compress.core.errors import QCompressError

ID = "Qwen/Qwen2.5-1.5B-Instruct"


@pytest.fixture
def requests(monkeypatch, tmp_path):
    """A hub that has every model; the list of its requests."""
    received = []

    def snapshot_download(repo, **options):
        received.append((repo, options))
        return str(tmp_path / f"models--{repo.replace('/', '--')}/snapshots/0123")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return received


@pytest.mark.parametrize("text", ["/models/qwen", "./Qwen/x", "qwen", "a/b/c", "configs/qwen.json", "Qwen/x y"])
def test_a_path_is_not_read_as_a_hub_id(requests, text):
    assert resolve_model(text) == Path(text) and not requests


def test_an_existing_folder_wins_over_a_hub_id(requests, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(ID).mkdir(parents=True)
    assert resolve_model(ID) == Path(ID) and not requests


@pytest.mark.parametrize(("suffix", "revision"), [("", None), ("@main", "main"), ("@refs/pr/3", "refs/pr/3")])
def test_a_hub_id_becomes_a_folder_with_the_model_name(requests, suffix, revision):
    path = resolve_model(ID + suffix)
    (repo, options), *others = requests
    assert (repo, options["revision"], others) == (ID, revision, [])
    assert (hub_name(path), model_name(path)) == (ID, "Qwen2.5-1.5B-Instruct")


def test_pickled_weights_are_never_downloaded(requests):
    from huggingface_hub.utils import filter_repo_objects

    resolve_model(ID)
    files = ["model.safetensors", "config.json", "tokenizer.json", "merges.txt", "chat_template.jinja"]
    rejected = ["pytorch_model.bin", "training_args.pt", "tokenizer.pkl", "original/model.safetensors", "run.py"]
    rejected += ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors"]
    options = {key: requests[0][1][key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*files, *rejected], **options)) == files


NOT_FOUND = SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.OfflineModeIsEnabled("offline"), f"run: hf download {ID} --revision v1 --local-dir Qwen2.5-1.5B"),
        (RuntimeError("proxy"), "the hub cannot be reached (RuntimeError)"),
        (errors.RepositoryNotFoundError("404", response=NOT_FOUND), "the hub has no such public model"),
        (errors.RevisionNotFoundError("404", response=NOT_FOUND), "the hub has no revision v1"),
    ],
    ids=["offline", "network", "model", "revision"],
)
def test_a_failed_download_is_an_error_of_one_line_with_the_cure(monkeypatch, error, words):
    def snapshot_download(*arguments, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(QCompressError) as caught:
        resolve_model(f"{ID}@v1")
    assert words in caught.value.message and "\n" not in caught.value.message


def test_offline_the_error_contains_the_download_command(tmp_path):
    code = f"from compress.checkpoint.hub import resolve_model; resolve_model('{ID}')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"run: hf download {ID} --local-dir Qwen2.5-1.5B-Instruct" in done.stderr


def test_a_plain_folder_has_no_hub_name(tmp_path):
    assert (hub_name(tmp_path), model_name(tmp_path)) == (None, tmp_path.name)


@pytest.mark.parametrize(
    ("names", "numbered"),
    [
        (["q", "r"], ["q", "r"]),
        (["q", "q", "r"], ["q-1", "q-2", "r"]),
        (["q", "q", "q-1"], ["q-2", "q-3", "q-1"]),
        (["q-1", "q", "q-1", "q"], ["q-1-1", "q-1", "q-1-2", "q-2"]),
    ],
)
def test_numbered_names_are_all_different(names, numbered):
    assert numbered_names(names) == numbered and len(set(numbered)) == len(names)
