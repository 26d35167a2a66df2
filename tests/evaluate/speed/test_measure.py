"""Timing with a stand-in engine, the worker's process, and the ends it can come to."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.core.timing import measure, random_prompts, resident_peak, time_request
from compress.evaluate.speed import measure as speed
from compress.evaluate.speed.hardware import GIB, plain_memory
from compress.evaluate.speed.measure import (
    GAINS,
    Timing,
    choose_engine,
    gains,
    make_request,
    make_row,
    medians,
    speed_rows,
    wait,
    why,
)
from compress.runtimes.transformers_timed import TransformersEngine

REQUEST = {
    "prompt_tokens": 5,
    "new_tokens": 3,
    "batch": 2,
    "repeats": 2,
    "warm_up": 1,
    "vocabulary": 50,
    "confirm_batch": True,
}
SMALL = Timing(prompt_tokens=16, new_tokens=4, batch=2, repeats=2, dtype="float32")


class Recorder:
    """An engine that only remembers what it was asked, and preempts batches above 3."""

    def __init__(self, largest=4):
        self.calls, self.largest, self.waits, self.clock = [], largest, 0, 0.0

    def facts(self):
        return {"engine": "recorder"}

    def generate(self, prompts, new_tokens):
        self.calls.append((len(prompts), len(prompts[0]), new_tokens))
        self.waits += len(prompts) > 3
        self.clock += 0.5 + 0.25 * new_tokens

    def peak_bytes(self):
        return 100 * max(count for count, _, _ in self.calls)

    def largest_batch(self, peaks):
        assert peaks == {count: 100 * count for count in peaks}
        return self.largest, "told"

    def preemptions(self):
        return self.waits


def test_a_request_is_one_token_then_all_and_a_batch_comes_last(monkeypatch):
    engine = Recorder()
    monkeypatch.setattr("compress.core.timing.time.perf_counter", lambda: engine.clock)
    lines = list(measure(engine, REQUEST))
    assert engine.calls == [(1, 5, 3)] + [(1, 5, 1), (1, 5, 3)] * 2 + [(2, 5, 3)] * 2 + [(4, 5, 3)]
    samples = [line["sample"] for line in lines if "sample" in line]
    one = {"ttft_s": 0.75, "latency_s": 1.25, "generate_s": 0.5, "decode_tokens_per_s": 4.0}
    assert samples == [one] * 2 + [{"throughput_tokens_per_s": 2 * 3 / 1.25}] * 2


def test_a_batch_of_one_has_the_throughput_of_a_request(monkeypatch):
    engine = Recorder()
    monkeypatch.setattr("compress.core.timing.time.perf_counter", lambda: engine.clock)
    lines = measure(engine, REQUEST | {"batch": 1, "confirm_batch": False})
    assert [line["sample"]["throughput_tokens_per_s"] for line in lines if "sample" in line] == [3 / 1.25] * 2


def test_a_worker_may_use_of_a_card_what_a_prediction_says(tiny_llama):
    request = make_request(Checkpoint(tiny_llama), Timing(memory=8 * GIB), turn=0)
    assert request["memory"] == plain_memory(8 * GIB).usable
    assert make_request(Checkpoint(tiny_llama), Timing(), turn=0)["memory"] is None


def test_a_first_token_that_took_longer_than_all_gives_no_speed_of_generation(monkeypatch):
    ticks = iter([0.0, 3.0, 3.0, 4.0])
    monkeypatch.setattr("compress.core.timing.time.perf_counter", lambda: next(ticks))
    assert time_request(Recorder(), [1], 3) == {"ttft_s": 3.0, "latency_s": 1.0}


@pytest.mark.parametrize(("largest", "ran"), [(3, True), (4, False)])
def test_a_largest_batch_that_had_to_wait_is_not_confirmed(largest, ran):
    last = list(measure(Recorder(largest), REQUEST))[-1]["facts"]
    assert last["largest_batch_ran"] is ran and ("preempted" in last.get("note", "")) is not ran


def test_prompts_are_valid_ids_and_the_same_for_the_same_seed():
    assert random_prompts(2, 9, 50, 1) == random_prompts(2, 9, 50, 1) != random_prompts(2, 9, 50, 2)
    assert {token for ids in random_prompts(4, 500, 50, 0) for token in ids} == set(range(50))


def test_medians_and_their_spread():
    row = medians([{"ttft_s": 3.0}, {"ttft_s": 1.0}, {"ttft_s": 2.5}], spread=True)
    assert row == {"ttft_s": 2.5, "ttft_s_low": 1.0, "ttft_s_high": 3.0}


def test_gains_are_above_zero_where_it_got_better():
    reference = dict.fromkeys(GAINS, 100.0) | {"role": "reference"}
    better = gains(dict.fromkeys(GAINS, 50.0) | {"role": "candidate", "largest_batch": 300}, reference)
    assert better["ttft_s_gain"] == better["weights_bytes_gain"] == 50
    assert better["decode_tokens_per_s_gain"] == -50 and better["largest_batch_gain"] == 200
    assert set(gains(reference, reference).values()) == {None}
    assert gains(reference | {"role": "candidate", "ttft_s": None}, reference)["ttft_s_gain"] is None


def test_transformers_fills_the_row(tiny_llama, quantized):
    rows = []
    for index, path in enumerate((tiny_llama, quantized["awq"])):
        checkpoint, told = Checkpoint(path), {"facts": [], "sample": []}
        request = make_request(checkpoint, SMALL, turn=0)
        for line in measure(TransformersEngine(request), request):
            for kind, figures in line.items():
                told[kind].append(figures)
        rows.append(make_row(index, checkpoint, told, SMALL))
    plain, packed = rows
    assert [row["role"] for row in rows] == ["reference", "candidate"] and json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert row["error"] is None and row["repeats"] == 2 and row["largest_batch_how"].startswith("memory")
        assert 0 < row["ttft_s_low"] <= row["ttft_s"] <= row["ttft_s_high"]
        assert row["throughput_tokens_per_s"] > 0 and row["largest_batch"] > 2 and row["dtype"] == "float32"
        assert row["peak_bytes"] >= row["baseline_bytes"] > 0
        assert row["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    assert plain["note"] is None and "dequantizes" in packed["note"]
    assert gains(packed, plain)["weights_bytes_gain"] > 0


def test_exactly_the_wanted_tokens_are_made(tiny_llama):
    engine = TransformersEngine(make_request(Checkpoint(tiny_llama), SMALL, turn=0))
    lengths = []
    generate = engine.model.generate
    engine.model.generate = lambda **options: lengths.append(generate(**options).shape)
    engine.generate(random_prompts(3, 16, 128, 0), 7)
    assert lengths == [(3, 23)]


def test_a_worker_that_dies_leaves_its_reason_and_what_it_had_measured(tiny_llama, tmp_path, monkeypatch):
    script = tmp_path / "dies.py"
    script.write_text(
        'import sys, os\nopen(sys.argv[2], "a").write(\'{"sample": {"ttft_s": 0.5}}\\n\')\nos.kill(os.getpid(), 9)\n'
    )
    monkeypatch.setitem(speed.WORKERS, "transformers", "dies")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    alias = tmp_path / "other" / tiny_llama.name
    shutil.copytree(tiny_llama, alias)
    row, other = speed_rows([tiny_llama, alias], Timing(prompt_tokens=8, new_tokens=2, rounds=3), timeout=60)
    assert (row["name"], other["name"]) == (str(tiny_llama), str(alias))
    assert "signal 9" in row["error"] and "GB were held" in row["error"]
    assert row["ttft_s"] == 0.5 and row["repeats"] == 1 and row["largest_batch"] is None


def alive_in(group, process):
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_a_worker_that_takes_too_long_ends_with_all_it_started():
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    ended, peak = wait(worker, 0.5)
    assert ended is None and peak > 1e6
    assert "not done after 0.5 s" in why(ended, peak, 0.5, "")
    assert_all_ended(worker)


def test_what_a_worker_that_failed_had_started_ends_too():
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.exit(5)"
    worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    assert wait(worker, 60)[0] == 5
    assert_all_ended(worker)


def assert_all_ended(worker):
    end = time.monotonic() + 10  # a killed process dies a moment later
    while (left := [one for one in psutil.process_iter() if alive_in(worker.pid, one)]) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left


def test_the_cause_is_the_error_in_the_output():
    output = "loading\nTraceback (most recent call last):\n  File x\nValueError: no such layer\n"
    assert why(1, 0, 1, output) == "ValueError: no such layer"


def test_this_process_has_a_peak():
    assert resident_peak() > 1e7 and resident_peak(2**30) == 0


def test_bad_numbers_are_refused_before_any_work(tiny_llama, monkeypatch):
    with pytest.raises(ValueError, match="--new-tokens 1"):
        Timing(new_tokens=1)
    with pytest.raises(ValueError, match="--batch 9 is more than --max-batch 8"):
        Timing(engine="vllm", batch=9, max_batch=8)
    assert Timing(batch=9, max_batch=8).batch == 9, "transformers has no such limit"
    with pytest.raises(QCompressError, match="longer than its context"):
        speed_rows([tiny_llama], Timing(prompt_tokens=2000), timeout=1)
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    assert choose_engine("auto") == "transformers"
    with pytest.raises(QCompressError, match="not installed"):
        choose_engine("vllm")
