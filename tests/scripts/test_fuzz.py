"""Damaged files end a command with one line: a short run of scripts/fuzz.py, and the fuzzer's eye for faults."""

import random
from types import SimpleNamespace

import pytest

from tests.scripts.test_benches import script

CASES = 12  # per file: the seven files take about 20 s


@pytest.fixture(scope="module")
def fuzz():
    return script("fuzz")


@pytest.fixture(scope="module")
def folder(fuzz, tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.write_originals(tiny_llama, folder)
    return folder


@pytest.mark.slow
def test_no_damaged_file_ends_a_command_with_a_traceback(fuzz, folder):
    for name in fuzz.COMMANDS:
        for case in range(CASES):
            assert fuzz.run_case(folder, name, seed=1, case=case) == []


def test_a_case_is_damaged_in_the_same_way_every_time(fuzz, folder):
    changed = 0
    for name in fuzz.COMMANDS:
        path = folder / "model" / name if (folder / "model" / name).exists() else folder / name
        data = path.read_bytes()
        for case in range(5):
            first, again = (fuzz.damaged(name, data, random.Random(case)) for _ in range(2))
            assert first == again
            changed += first != data
        assert path.read_bytes() == data
    assert changed > 25


@pytest.mark.parametrize(
    ("code", "output", "exception", "seconds", "fault"),
    [
        (0, "fine", None, 1, False),
        (1, "Error: a.json: not JSON", SystemExit(1), 1, False),
        (3, "Error: 2 errors", SystemExit(3), 1, False),
        (1, "Error: this is a bug in qcompress: KeyError", SystemExit(1), 1, True),
        (1, "Traceback (most recent call last)", SystemExit(1), 1, True),
        (1, "nothing", SystemExit(1), 1, True),
        (139, "", None, 1, True),
        (1, "", KeyError("a"), 1, True),
        (0, "fine", None, 99, True),
    ],
)
def test_the_fuzzer_recognises_what_a_command_may_not_do(fuzz, code, output, exception, seconds, fault):
    result = SimpleNamespace(exit_code=code, output=output, exception=exception)
    assert bool(fuzz.fault_of(result, seconds, 0)) is fault
