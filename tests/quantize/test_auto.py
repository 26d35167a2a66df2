"""--method auto publishes the candidate with the lowest KL on held-out windows. Its record has all candidates' rows."""

from dataclasses import replace

import pytest
import torch

from calibration.windows import build_windows
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import Checkpoint
from compress.core.config import METHODS, QuantizeConfig
from compress.core.errors import QCompressError
from compress.quantize import auto
from compress.quantize.auto import make_evaluator, quantize

pytestmark = pytest.mark.slow  # runs whole jobs

CONFIG = QuantizeConfig(method="auto", format="awq", samples=16, seq_len=24, group_size=32)


@pytest.fixture(scope="module")
def chosen(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("auto") / "best"
    return out, quantize(tiny_llama, out, replace(CONFIG, tune=1))


def test_the_candidate_of_lowest_kl_is_published_with_all_rows(chosen, tiny_llama):
    out, row = chosen
    record = Checkpoint(out).record
    kls = {candidate["candidate"]: candidate["eval_kl"] for candidate in record["candidates"]}
    assert set(kls) >= set(METHODS) and any(name.endswith("+tune") for name in kls)
    assert row["eval_kl"] == min(kls.values()) <= kls["rtn"]
    assert record["settings"]["method"] == row["candidate"].removesuffix("+tune")
    assert not [r for r in check_checkpoint(out, source=tiny_llama) if r["level"] == "error"]
    card = (out / "README.md").read_text()
    assert all(f"| {name} | {kl:.4g} |" in card for name, kl in kls.items())


def test_no_hidden_folder_remains_beside_the_result(chosen):
    out, _ = chosen
    assert not [path.name for path in out.parent.iterdir() if path.name.startswith(".")]


def test_no_candidate_reads_the_held_out_windows(tiny_llama, chosen):
    out, _ = chosen
    record = Checkpoint(out).record
    assert record["settings"]["held_out"] == record["calibration"]["held_out"] == 2
    evaluator = make_evaluator(tiny_llama, CONFIG.with_held_out(), "cpu")
    start, size = record["calibration"]["start_token"], {"n_samples": 16, "seq_len": 24}
    windows = build_windows(["default"], Checkpoint(tiny_llama).tokenizer, **size, start_token=start, held_out=2)
    assert torch.equal(evaluator.ids, windows.ids[16:])
    assert record["calibration"]["digest"] == windows.manifest["digest"]


def test_no_method_runs_again_after_a_kill_during_clean_up(tiny_llama, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(auto, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize(tiny_llama, tmp_path / "best", CONFIG)
    assert (tmp_path / ".best.auto").is_dir()
    monkeypatch.setattr(auto, "quantize_checkpoint", None)
    row = quantize(tiny_llama, tmp_path / "best", CONFIG)
    assert row["out"] == str(tmp_path / "best") and not (tmp_path / ".best.auto").exists()


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_another_checkpoint_at_out_is_not_overwritten(tiny_llama, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(auto, "quantize_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize(tiny_llama, tmp_path / "best", CONFIG)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text("{}")
    with pytest.raises(QCompressError, match="is not empty"):
        quantize(tiny_llama, tmp_path / "best", CONFIG)


@pytest.mark.parametrize("changes", [{"method": "auto"}, {"method": "gptq", "tune": 1}])
def test_one_window_is_too_few_for_held_out_windows(changes):
    with pytest.raises(ValueError, match="--samples 1: must be 2 or more"):
        replace(CONFIG, samples=1, **changes)


def test_a_finished_candidate_is_not_quantized_again_after_a_kill(tiny_llama, tmp_path, monkeypatch):
    methods = []

    def quantize_or_stop(model, path, config, run):
        if config.method == "awq" and not methods.count("awq"):
            methods.append("awq")
            raise KeyboardInterrupt
        methods.append(config.method)
        return original(model, path, config, run)

    original = auto.quantize_checkpoint
    monkeypatch.setattr(auto, "quantize_checkpoint", quantize_or_stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(tiny_llama, tmp_path / "best", CONFIG)
    with pytest.raises(QCompressError, match=r"samples 16 \(now 8\)"):
        quantize(tiny_llama, tmp_path / "best", replace(CONFIG, samples=8, held_out=2))
    quantize(tiny_llama, tmp_path / "best", CONFIG)
    assert methods == ["rtn", "gptq", "awq", "awq", "awq+gptq"]
    assert Checkpoint(tmp_path / "best").quantization
