"""Timing with a stand-in runtime, the measuring process, and how it can fail."""

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
from compress.evaluate.speed import measure as speed
from compress.evaluate.speed.hardware import GIB, memory_only
from compress.evaluate.speed.measure import (
    GAINS,
    Lines,
    failure_reason,
    gains,
    make_request,
    make_row,
    medians,
    speed_rows,
    wait,
)
from compress.evaluate.speed.settings import Resources, Timing
from compress.runtimes.timing import (
    latency_sample,
    measure,
    random_prompts,
    resident_peak,
    throughput_sample,
    time_prompts,
)
from compress.runtimes.transformers_runtime import open_timed

REQUEST = {
    "prompt_tokens": 5,
    "new_tokens": 3,
    "batch_size": 2,
    "repeats": 2,
    "warm_up": 1,
    "vocab_size": 50,
    "confirm_batch": True,
}
SMALL = Timing(prompt_tokens=16, new_tokens=4, batch_size=2, repeats=2)
FLOAT32 = Resources(dtype="float32")


class Recorder:
    """A runtime that only records its calls, and preempts batches above 3."""

    def __init__(self, largest=4):
        self.calls, self.largest, self.waits, self.clock = [], largest, 0, 0.0

    def facts(self):
        return {"runtime": "recorder"}

    def generate_exactly(self, prompts, new_tokens):
        self.calls.append((len(prompts), len(prompts[0]), new_tokens))
        self.waits += len(prompts) > 3
        self.clock += 0.5 + 0.25 * new_tokens

    def peak_bytes(self):
        return 100 * max(count for count, _, _ in self.calls)

    def largest_batch(self):
        return self.largest and (self.largest, "a test")

    def preemptions(self):
        return self.waits


def test_single_requests_come_first_and_batches_last(monkeypatch):
    runtime = Recorder()
    monkeypatch.setattr("compress.runtimes.timing.time.perf_counter", lambda: runtime.clock)
    lines = list(measure(runtime, REQUEST))
    single, batch = [(1, 5, 1), (1, 5, 3)], [(2, 5, 1), (2, 5, 3)]
    assert runtime.calls == [(1, 5, 3)] + single * 2 + batch * 2 + [(4, 5, 3)]
    samples = [line["sample"] for line in lines if "sample" in line]
    one = {"ttft_ms": 750.0, "e2el_ms": 1250.0, "tpot_ms": 250.0}
    two = {"output_throughput": 2 * 3 / 1.25, "total_token_throughput": 2 * 8 / 1.25}
    assert samples == [one] * 2 + [two | {"decode_throughput": 2 * 2 / 0.5}] * 2


def test_a_runtime_without_a_largest_batch_reports_none(monkeypatch):
    runtime = Recorder(largest=None)
    lines = list(measure(runtime, REQUEST))
    assert not any("largest_batch" in line.get("facts", {}) for line in lines) and runtime.calls[-1] == (2, 5, 3)
    with pytest.raises(ValueError, match="--confirm-batch: transformers has no fixed KV cache, so no largest batch"):
        Timing("transformers", confirm_batch=True).complete()


def test_batch_size_1_has_the_throughput_of_a_request(monkeypatch):
    runtime = Recorder()
    monkeypatch.setattr("compress.runtimes.timing.time.perf_counter", lambda: runtime.clock)
    lines = measure(runtime, REQUEST | {"batch_size": 1, "confirm_batch": False})
    samples = [line["sample"] for line in lines if "sample" in line]
    assert [sample["output_throughput"] for sample in samples] == [3 / 1.25] * 2
    assert all(sample["decode_throughput"] == 1e3 / sample["tpot_ms"] for sample in samples)


def test_measuring_may_use_the_memory_that_a_prediction_assumes(tiny_llama):
    request = make_request(Checkpoint(tiny_llama), Timing(), Resources(gpu_memory=8 * GIB), 0)
    assert request["memory"] == memory_only(8 * GIB).usable
    assert make_request(Checkpoint(tiny_llama), Timing(), Resources(), 0)["memory"] is None


def test_a_first_token_slower_than_the_answer_gives_no_decoding_speed(monkeypatch):
    ticks = iter([0.0, 3.0, 3.0, 4.0])
    monkeypatch.setattr("compress.runtimes.timing.time.perf_counter", lambda: next(ticks))
    times = time_prompts(Recorder(), [[1]], 3)
    assert latency_sample(times, 3) == {"ttft_ms": 3000.0, "e2el_ms": 1000.0}
    assert throughput_sample(times, 2, 5, 3) == {"output_throughput": 6.0, "total_token_throughput": 16.0}


@pytest.mark.parametrize(("largest", "ran"), [(3, True), (4, False)])
def test_a_largest_batch_that_was_preempted_is_not_confirmed(largest, ran):
    last = list(measure(Recorder(largest), REQUEST))[-1]["facts"]
    assert last["largest_batch_ran"] is ran and ("preempted" in last.get("note", "")) is not ran


def test_prompts_are_valid_ids_and_the_same_for_the_same_seed():
    assert random_prompts(2, 9, 50, 1) == random_prompts(2, 9, 50, 1) != random_prompts(2, 9, 50, 2)
    assert {token for ids in random_prompts(4, 500, 50, 0) for token in ids} == set(range(50))


def test_medians_come_with_minimum_and_maximum():
    row = medians([{"ttft_ms": 3.0}, {"ttft_ms": 1.0}, {"ttft_ms": 2.5}], spread=True)
    assert row == {"ttft_ms": 2.5, "ttft_ms_low": 1.0, "ttft_ms_high": 3.0}


def test_gains_are_positive_for_a_better_candidate():
    reference = dict.fromkeys(GAINS, 100.0) | {"role": "reference"}
    better = gains(dict.fromkeys(GAINS, 50.0) | {"role": "candidate", "largest_batch": 300}, reference)
    assert better["ttft_ms_gain"] == better["weights_bytes_gain"] == 50
    assert better["decode_throughput_gain"] == -50 and better["largest_batch_gain"] == 200
    assert set(gains(reference, reference).values()) == {None}
    assert gains(reference | {"role": "candidate", "ttft_ms": None}, reference)["ttft_ms_gain"] is None


def test_transformers_fills_every_figure_of_the_row(tiny_llama, quantized):
    rows = []
    for index, path in enumerate((tiny_llama, quantized["awq"])):
        checkpoint, lines = Checkpoint(path), Lines()
        request = make_request(checkpoint, SMALL, FLOAT32, 0)
        for line in measure(open_timed(request), request):
            lines.add(line)
        rows.append(make_row(index, checkpoint, lines, SMALL))
    plain, packed = rows
    assert [row["role"] for row in rows] == ["reference", "candidate"] and json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert row["error"] is None and row["repeats"] == 2 and row["largest_batch"] is None
        assert 0 < row["ttft_ms_low"] <= row["ttft_ms"] <= row["ttft_ms_high"]
        assert 0 < row["output_throughput"] < row["total_token_throughput"] and row["dtype"] == "float32"
        assert row["peak_bytes"] >= row["baseline_bytes"] > 0
        assert row["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    assert plain["note"] is None and "dequantizes" in packed["note"]
    assert gains(packed, plain)["weights_bytes_gain"] > 0


def test_generate_exactly_never_stops_early(tiny_llama):
    runtime = open_timed(make_request(Checkpoint(tiny_llama), SMALL, FLOAT32, 0))
    lengths = []
    generate = runtime.model.generate
    runtime.model.generate = lambda **options: lengths.append(generate(**options).shape)
    runtime.generate_exactly(random_prompts(3, 16, 128, 0), 7)
    assert lengths == [(3, 23)]


def test_a_killed_process_leaves_its_reason_and_its_measurements(tiny_llama, tmp_path, monkeypatch):
    script = tmp_path / "dies.py"
    script.write_text(
        'import sys, os\nopen(sys.argv[2], "a").write(\'{"sample": {"ttft_ms": 500}}\\n\')\nos.kill(os.getpid(), 9)\n'
    )
    monkeypatch.setitem(speed.WORKERS, "transformers", "dies")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    alias = tmp_path / "other" / tiny_llama.name
    shutil.copytree(tiny_llama, alias)
    row, other = speed_rows(
        [tiny_llama, alias],
        Timing("transformers", prompt_tokens=8, new_tokens=2, rounds=3),
        Resources(timeout=60.0),
    )
    assert (row["name"], other["name"]) == (str(tiny_llama), str(alias))
    assert "signal 9" in row["error"] and "peak memory" in row["error"]
    assert row["ttft_ms"] == 500 and row["repeats"] == 1 and row["largest_batch"] is None


def alive_in(group, process):
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_a_process_beyond_the_timeout_ends_with_its_children():
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    ended, peak = wait(worker, 0.5)
    assert ended is None and peak > 1e6
    assert "not finished after 0.5 s" in failure_reason(ended, peak, 0.5, "")
    assert_all_ended(worker)


def test_the_children_of_a_failed_process_end_too():
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.exit(5)"
    worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    assert wait(worker, 60)[0] == 5
    assert_all_ended(worker)


def assert_all_ended(worker):
    end = time.monotonic() + 10  # a killed process dies a moment later
    while (left := [one for one in psutil.process_iter() if alive_in(worker.pid, one)]) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left


def test_the_reason_is_the_error_in_the_output():
    output = "loading\nTraceback (most recent call last):\n  File x\nValueError: no such layer\n"
    assert failure_reason(1, 0, 1, output) == "ValueError: no such layer"


def test_this_process_has_a_peak_and_a_missing_one_has_none():
    assert resident_peak() > 1e7 and resident_peak(2**30) == 0


def test_bad_numbers_are_rejected_before_any_work(tiny_llama):
    with pytest.raises(ValueError, match="--new-tokens 1"):
        Timing(new_tokens=1).complete()
    with pytest.raises(ValueError, match="--batch-size 9 is above --max-batch-size 8"):
        Timing(runtime="vllm", batch_size=9, max_batch_size=8).complete()
    assert Timing(batch_size=9, max_batch_size=8).complete().batch_size == 9, "transformers has no such limit"
    with pytest.raises(QCompressError, match="longer than the model's context"):
        speed_rows([tiny_llama], Timing("transformers", prompt_tokens=2000), Resources())
