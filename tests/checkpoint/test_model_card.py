"""The model card: front matter that the hub reads, nothing that changes between two runs, no invented value."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.checkpoint.model_card import find_license, find_name, front_matter, write_card

MANIFEST = {"sources": [{"name": "/home/me/chats.jsonl", "digest": "sha256:dd", "weight": 0.5, "tokens": 1200}]}
RECORD: dict[str, Any] = {
    "command": "distill",
    "settings": {"alpha": 0.7, "text": ["/home/me/chats.jsonl"], "eval_text": "heldout", "cache": None},
    "source": {"path": "/home/me/big", "digest": "sha256:aa", "name": "org/big", "license": "apache-2.0"},
    "calibration": MANIFEST,
    "eval_text": {"sources": [{"name": "heldout", "digest": "sha256:ee", "weight": 1.0, "tokens": 300}]},
    "loss": [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.25}],
    "rows": [
        {"out": "/home/me/small", "seconds": 17.3, "kl_before": 2.5, "kl_after": 1.25, "tokens_read": 4096, "steps": 2}
    ],
    "versions": {"qcompress": "0.1.0"},
}


def matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_lists_teacher_texts_tokens_and_results():
    text = write_card(RECORD)
    front = matter(text)
    assert front["license"] == "apache-2.0" and front["base_model"] == ["org/big"]
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    for word in (
        "sha256:aa",
        "chats.jsonl",
        "sha256:dd",
        "sha256:ee",
        "4,096",
        "2.5 |",
        "1.25 |",
        "3.5 → 2.25",
        '"alpha": 0.7',
    ):
        assert word in text
    assert "vllm serve" in text and "AutoModelForCausalLM" in text


QUANTIZED: dict[str, Any] = {
    "command": "quantize",
    "settings": {"method": "awq", "format": "awq", "bits": 4, "group_size": 64},
    "source": RECORD["source"],
    "size": {"bytes": 114_012_345, "source_bytes": 269_060_552, "bits_per_weight": 4.3125},
    "calibration": MANIFEST,
    "rows": [{"error": 0.01, "rtn_error": 0.03}, {"error": 0.02, "rtn_error": 0.05}],
    "tune": {"kl_before": 0.31, "kl_blocks": 0.27, "kl": 0.22, "step": 9},
    "candidates": [{"candidate": "rtn", "eval_kl": 0.51}, {"candidate": "awq+tune", "eval_kl": 0.22}],
    "versions": {"qcompress": "0.1.0"},
}


def test_the_card_of_a_quantized_model_lists_size_errors_and_candidates():
    text = write_card(QUANTIZED)
    front = matter(text)
    assert front["base_model"] == ["org/big"] and front["base_model_relation"] == "quantized"
    assert front["tags"] == ["qcompress", "quantization", "4-bit", "awq"]
    for line in (
        "| bytes of all weights | 114,012,345, 42.4% of the source |",
        "| output energy lost, mean over the linears | 0.015 |",
        "| the same by plain rounding | 0.04 |",
        "| KL to the source after tuning | 0.22 |",
        "| rtn | 0.51 |",
        "| awq+tune | 0.22 |",
        "| calibration | chats.jsonl | 0.5 | 1,200 | `sha256:dd` |",
    ):
        assert line in text.splitlines()


def test_the_card_lists_held_out_windows_with_the_calibration_text():
    manifest = MANIFEST | {"n_samples": 16, "held_out": 2}
    text = write_card(QUANTIZED | {"calibration": manifest})
    assert "| calibration, 2 of 18 windows held out | chats.jsonl |" in text


def test_the_card_of_a_rounded_model_has_no_line_about_tuning():
    bare = {key: value for key, value in QUANTIZED.items() if key not in ("calibration", "tune", "candidates")}
    text = write_card(bare | {"calibration": None, "tune": None})
    assert not any(word in text for word in ("tuning", "Tried", "## Data", "None"))


def test_the_card_contains_no_path_and_no_time():
    text = write_card(RECORD)
    assert "/home/me" not in text and "17.3" not in text and "seconds" not in text


@pytest.mark.parametrize("license_", [None, "mit"])
def test_the_card_has_a_licence_only_if_all_sources_agree(license_):
    student = {"path": "small", "digest": "sha256:bb", "name": "org/small", "license": license_}
    text = write_card(RECORD | {"student": student})
    assert "license" not in matter(text) and matter(text)["base_model"] == ["org/small", "org/big"]
    assert matter(write_card(RECORD | {"student": student | {"license": "apache-2.0"}}))["license"] == "apache-2.0"


def test_the_card_shows_retention_only_if_it_was_measured():
    assert "retention" not in write_card(RECORD)
    assert "| retention, % | 87.5 |" in write_card(RECORD | {"retention": 87.5})


def test_a_quantized_model_is_tagged_with_method_and_format():
    settings = {"method": "awq", "format": "gptq"}
    front = matter(write_card({**RECORD, "command": "quantize", "settings": settings, "rows": [{"name": "a"}]}))
    assert front["base_model_relation"] == "quantized" and {"awq", "gptq", "4-bit"} <= set(front["tags"])


def test_the_card_lists_the_texts_of_every_stage():
    settings = {"alpha": 0.7, "stages": [{"name": "task", "replay": 0.25, "text": ["/home/me/t.jsonl"]}]}
    stages = [{"name": "task", "calibration": {"sources": [{"name": "t.jsonl", "digest": "sha256:ff", "tokens": 5}]}}]
    text = write_card(RECORD | {"stages": stages, "settings": settings})
    assert (
        "| stage task, training | t.jsonl | 1 | 5 | `sha256:ff` |" in text
        and '"replay": 0.25' in text
        and "/home/me" not in text
    )


@pytest.mark.parametrize(
    ("file", "text", "license_"),
    [
        ("README.md", "---\nlicense: gemma\ntags: [a]\n---\n# x", "gemma"),
        ("README.md", "# no front matter\n---\nlicense: gemma\n---\n", None),
        ("README.md", "---\n: : [\n---\n", None),
        ("LICENSE", "                        Apache License\n   Version 2.0", "apache-2.0"),
        ("LICENSE", "Our own terms", None),
    ],
)
def test_a_licence_is_read_from_the_card_or_the_licence_file(tmp_path: Path, file, text, license_):
    (tmp_path / file).write_text(text)
    assert find_license(tmp_path) == license_


def test_the_licence_of_a_card_is_inherited(tmp_path: Path):
    (tmp_path / "README.md").write_text(write_card(RECORD))
    assert find_license(tmp_path) == "apache-2.0"
    assert front_matter(tmp_path / "nowhere.md") == {}


@pytest.mark.parametrize(("config_name", "name"), [("org/big", "org/big"), ("/tmp/big", "here"), (None, "here")])
def test_the_name_is_the_hub_id_in_the_config_if_there_is_one(tmp_path: Path, config_name, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/config.json").write_text("{}" if config_name is None else f'{{"_name_or_path": "{config_name}"}}')
    assert find_name(tmp_path / "here") == name


def test_a_downloaded_model_is_named_by_its_hub_id(tmp_path: Path):
    folder = tmp_path / "models--org--small/snapshots/0123"
    folder.mkdir(parents=True)
    assert find_name(folder) == "org/small"
