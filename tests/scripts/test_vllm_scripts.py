"""The scripts that test and time vLLM. A transformers model stands in for vLLM."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.runtimes.vllm_offline import VllmFailedError, cause, run_in_new_process

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


vllm_test = load_script("vllm_test")
bench = load_script("bench_vllm_cpu")


@torch.no_grad()
def continue_greedily(model, prompt_ids, tokens=5):
    """The passage that a correct runtime returns for one prompt."""
    ids = list(prompt_ids)
    for _ in range(tokens):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(ids)[1:, None])[:, 0].tolist()
    return {"prompt_ids": list(prompt_ids), "token_ids": ids[len(prompt_ids) :], "logprobs": chosen}


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    """A model, and passages that this model generated."""
    model, tokenizer = load_model(tiny_llama), Checkpoint(tiny_llama).tokenizer
    prompts = tokenizer(list(vllm_test.PROMPTS))["input_ids"]
    return model, [continue_greedily(model, ids) for ids in [*prompts, prompts[0]]]


def altered(passages, key, place, value):
    changed = [{k: list(v) for k, v in passage.items()} for passage in passages]
    changed[0][key][place] = value
    return changed


def test_a_correct_runtime_differs_by_nothing(tiny):
    row = vllm_test.compare(*tiny)
    assert row["max_difference"] < 1e-4
    assert row["other_choices"] == row["max_behind"] == 0
    assert row["generated"] == 5 * len(tiny[1])


@pytest.mark.parametrize("place", [0, -1], ids=["prompt", "generated"])
def test_one_wrong_log_probability_is_detected(tiny, place):
    model, passages = tiny
    wrong = passages[0]["logprobs"][place] - 0.5
    row = vllm_test.compare(model, altered(passages, "logprobs", place, wrong))
    assert row["max_difference"] == pytest.approx(0.5, abs=1e-4)
    assert row["mean_difference"] == pytest.approx(0.5 / row["tokens"], abs=1e-4)


def test_a_token_that_is_unlikely_for_the_reference_is_detected(tiny):
    model, passages = tiny
    ids = torch.tensor([passages[0]["prompt_ids"] + passages[0]["token_ids"]])
    with torch.no_grad():
        last = model(ids).logits[0, -2].log_softmax(-1)
    row = vllm_test.compare(model, altered(passages, "token_ids", -1, last.argmin().item()))
    assert row["other_choices"] == 1
    assert row["max_behind"] == pytest.approx((last.max() - last.min()).item(), abs=1e-4)


def run_script(monkeypatch, answer, *arguments):
    """Run a script. Returns its exit code and output. `answer` stands in for vLLM's process."""
    monkeypatch.setattr(vllm_test, "run_in_new_process", answer)
    result = CliRunner().invoke(vllm_test.main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_difference_beyond_the_tolerance_exits_1(monkeypatch, tiny, tiny_llama):
    passages = tiny[1]
    assert run_script(monkeypatch, lambda *_: passages, tiny_llama)[0] == 0
    shifted = altered(passages, "logprobs", 3, passages[0]["logprobs"][3] + 0.15)
    assert run_script(monkeypatch, lambda *_: shifted, tiny_llama)[0] == 0
    code, output = run_script(monkeypatch, lambda *_: shifted, tiny_llama, "--tolerance", 0.1)
    assert code == 1
    assert output.startswith("DIFFERS")


def test_a_small_difference_everywhere_exits_1(monkeypatch, tiny, tiny_llama):
    moved = [passage | {"logprobs": [value + 0.05 for value in passage["logprobs"]]} for passage in tiny[1]]
    assert run_script(monkeypatch, lambda *_: moved, tiny_llama)[0] == 1


def test_a_nan_never_agrees(monkeypatch, tiny, tiny_llama):
    assert run_script(monkeypatch, lambda *_: altered(tiny[1], "logprobs", 0, float("nan")), tiny_llama)[0] == 1


def test_different_prompt_tokens_exit_1_with_the_reason(monkeypatch, tiny, tiny_llama):
    code, output = run_script(monkeypatch, lambda *_: altered(tiny[1], "prompt_ids", 0, 1), tiny_llama)
    assert code == 1
    assert "tokens" in output


def test_a_runtime_that_does_not_load_exits_1_with_the_reason(monkeypatch, tiny_llama):
    def fail(*_):
        raise VllmFailedError("ValueError: no such quantization")

    code, output = run_script(monkeypatch, fail, tiny_llama)
    assert code == 1
    assert "ValueError: no such quantization" in output


def test_a_broken_checkpoint_never_stops_the_next_one(monkeypatch, tiny, tiny_llama, tmp_path):
    code, output = run_script(monkeypatch, lambda *_: tiny[1], tmp_path, tiny_llama)
    assert code == 1
    assert [line.split()[0] for line in output.splitlines()] == ["DIFFERS", "agrees"]


def test_a_worker_answers_from_another_process(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "request = json.load(open(sys.argv[2]))\n"
        "json.dump([request['x'] + 1, os.getppid(), os.environ['HF_HUB_OFFLINE']], open(sys.argv[3], 'w'))\n"
    )
    assert run_in_new_process(str(script), {"x": 1}) == [2, os.getpid(), "1"]


def test_a_failed_worker_raises_its_first_exception(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("try:\n    {}['cause']\nexcept KeyError:\n    raise RuntimeError('later')\n")
    with pytest.raises(VllmFailedError, match=r"^KeyError: 'cause'$"):
        run_in_new_process(str(script), {})


def test_the_cause_follows_the_log_prefix_and_is_no_warning():
    output = (
        "(Worker pid=1) WARNING 11-23 [utils.py:597] fallback to torch linear. Exception: could not create\n"
        '(Worker pid=1) ERROR 11-23 [executor.py:953]     raise ValueError("see below")\n'
        "(Worker pid=1) ERROR 11-23 [executor.py:953] RuntimeError: start (0) + length (48) exceeds 24.\n"
        "Exception: WorkerProc initialization failed\n"
    )
    assert cause(output) == "RuntimeError: start (0) + length (48) exceeds 24."


def test_ratios_compare_medians_and_bests_with_the_first_row(tiny_llama, tiny_qwen2):
    def runs(speeds, firsts):
        return [{"tokens_per_s": speeds, "first_token_s": firsts, "load_average": [0.5]}]

    slow = bench.summarize(str(tiny_llama), runs([1.0, 10.0, 12.0], [0.2, 0.4, 0.9]) + runs([14.0, 10.0], [0.5, 0.4]))
    fast = bench.summarize(str(tiny_qwen2), runs([30.0, 20.0, 10.0], [0.1, 0.1, 0.8]))
    rows = bench.with_ratios([slow, fast])
    assert (slow["tokens_per_s"], slow["first_token_ms"], slow["repeats"]) == (10.0, 400.0, 5)
    assert (rows[1]["tokens_per_s_ratio"], rows[1]["first_token_ms_ratio"]) == (2.0, 4.0)
    assert rows[1]["best_first_token_ms_ratio"] == 2.0
    assert rows[0]["best_tokens_per_s_ratio"] == 1.0
    assert "2.00" in bench.table(rows)
