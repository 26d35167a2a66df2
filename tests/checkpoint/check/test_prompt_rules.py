"""The tokenizer's files, the chat template and generation_config.json are read, and compared with one another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.check.run import check_checkpoint, check_written
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.record import DIGESTS
from compress.core.errors import GateFailure

TEMPLATE = "chat_template.jinja"


@pytest.fixture
def path(good, tmp_path) -> Path:
    """A copy without digests, so that only the files themselves can tell."""
    copied = Path(shutil.copytree(good("llama", "awq"), tmp_path / "model"))
    (copied / DIGESTS).unlink()
    return copied


def edit(path: Path, name: str, **values: Any) -> None:
    file = path / name
    value = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(value | values))


def edit_model(path: Path, **values: Any) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    edit(path, "tokenizer.json", model=tokenizer["model"] | values)


def found(path: Path, level: str = "error") -> set[str]:
    return {row["rule"] for row in check_checkpoint(path) if row["level"] == level and row["rule"] != "T4"}


def model(path: Path) -> dict[str, Any]:
    return json.loads((path / "tokenizer.json").read_text())["model"]


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"version"', "version https://git-lfs.github.com/spec/v1\n", "\ufeff{}", ""]
)
def test_a_tokenizer_that_cannot_be_loaded_breaks_p1_alone(path, text):
    (path / "tokenizer.json").write_text(text)
    assert found(path) == {"P1"}


@pytest.mark.parametrize(
    ("name", "text"), [("tokenizer_config.json", "["), ("generation_config.json", "{"), (TEMPLATE, b"\xff\xfe")]
)
def test_a_file_that_cannot_be_read_breaks_p1(path, name, text):
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "P1" in found(path)


def test_a_setting_of_the_wrong_type_breaks_p1(path):
    edit(path, "tokenizer_config.json", eos_token=3)
    assert "P1" in found(path)


def test_a_token_beyond_the_embedding_breaks_p2(path):
    edit(path, "config.json", vocab_size=128)
    vocab = model(path)["vocab"]
    edit_model(path, vocab=vocab | {"beyond": 128})
    assert "P2" in found(path)


def test_an_id_that_no_vocabulary_reaches_breaks_p1(path):
    edit_model(path, vocab=model(path)["vocab"] | {"beyond": 2**31})
    assert "P1" in found(path)


def test_two_tokens_with_one_id_break_p2(path):
    vocab = model(path)["vocab"]
    edit_model(path, vocab=vocab | {"a": vocab["b"]})
    assert "P2" in found(path)


def test_cut_merges_break_p2_and_a_hole_is_a_warning(path):
    merges, vocab = model(path)["merges"], model(path)["vocab"]
    edit_model(path, merges=merges[: len(merges) // 2])
    assert found(path) == {"P2"}
    edit_model(path, merges=merges, vocab={token: number for token, number in vocab.items() if token != "~"})
    assert found(path, "warning") == {"P2"} and not found(path)


def test_an_added_token_with_another_id_breaks_p2(path):
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"][1]["id"] = 77
    edit(path, "tokenizer.json", added_tokens=tokenizer["added_tokens"])
    assert "P2" in found(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"eos_token_id": 7}),
        ("config.json", {"eos_token_id": 4096}),
        ("generation_config.json", {"eos_token_id": [7]}),
        ("generation_config.json", {"eos_token_id": "3"}),
        ("tokenizer_config.json", {"eos_token": "<s>"}),
        ("tokenizer_config.json", {"bos_token": "<|nowhere|>"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "<s>"}}}),
        ("special_tokens_map.json", {"eos_token": "<s>"}),
        ("added_tokens.json", {"<s>": 99}),
        ("vocab.json", {"a": 1}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_files_that_disagree_break_p3(path, name, values):
    edit(path, name, **values)
    assert "P3" in found(path)


def test_several_stop_tokens_with_the_tokenizers_among_them_are_fine(path):
    edit(path, "config.json", eos_token_id=[1, 3])
    edit(path, "generation_config.json", eos_token_id=[3, 2])
    assert not found(path)


@pytest.mark.parametrize(("role", "number"), [("bos", 9), ("pad", 9)])
def test_another_bos_or_pad_id_is_a_warning(path, role, number):
    edit(path, "config.json", **{f"{role}_token_id": number})
    assert found(path, "warning") == {"P3"} and not found(path)


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}",
        "",
        "{{ 1 / 0 }}",
        "{{ messages | nothing }}",
        "{{ raise_exception('no') }}",
        "no text of the user",
        "{% include 'x' %}",
    ],
)
def test_a_template_that_renders_no_conversation_breaks_p4(path, text):
    (path / TEMPLATE).write_text(text)
    assert found(path) == {"P4"}


def test_a_template_without_end_stops_within_seconds(path):
    (path / TEMPLATE).write_text("{{ messages | tojson(indent=10**9) }}")
    assert "P4" in found(path)


def test_markers_that_are_no_tokens_are_a_warning(path):
    (path / TEMPLATE).write_text("{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}")
    assert found(path, "warning") == {"P4"} and not found(path)


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_p": 2}, {"top_k": 1.5}, {"repetition_penalty": "1"}])
def test_a_sampling_setting_that_vllm_refuses_breaks_p5(path, values):
    edit(path, "generation_config.json", **values)
    assert found(path) == {"P5"}


def test_a_fault_that_was_copied_with_the_tokenizer_does_not_count(path, good):
    edit(path, "generation_config.json", eos_token_id=[7])
    assert "P3" in found(path)
    check_written(path, Checkpoint(path))
    words = r"removed: .*P3 \S+: .+ \(expected: "
    with pytest.raises(GateFailure, match=words) as raised:
        check_written(path, Checkpoint(good("llama", "awq")))
    assert "{" not in str(raised.value)
    edit(path, "config.json", torch_dtype="float32")
    with pytest.raises(GateFailure):
        check_written(path, Checkpoint(path))
