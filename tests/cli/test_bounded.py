"""Inputs without end, too large, too deep or damaged: one line, in seconds and in bounded memory.

Each command runs in a forked child of a process that has done the imports, which measures seconds and peak memory.
"""

import gzip
import json
import os
import subprocess
import sys

import pytest

SECONDS, PEAK_BYTES = 30, 1_000_000_000  # alone, a case takes under 10 s and about 0.6 GB, of which imports are 0.4
RUNNER = """
import json, os, signal, sys, time
import compress.pipeline, compress.quantize.job, compress.evaluate.tasks.job, compress.distill.generate.job
import pyarrow.parquet
from compress.cli import cli
for name, arguments in json.load(sys.stdin).items():
    output, started = f"{sys.argv[1]}/{name}.out", time.time()
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1), os.dup2(file, 2)
        cli(arguments)
    _, status, usage = os.wait4(child, 0)
    text = open(output, errors="replace").read()
    row = {"status": status, "seconds": time.time() - started, "peak": usage.ru_maxrss * 1024, "text": text}
    print(json.dumps({name: row}), flush=True)
"""


def big_line(folder):
    with (folder / "line.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"a" * 1_000_000)
        file.write(b'"}\n')


def bomb(path, piece, count):
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(count):
            file.write(piece)


def laughs():
    """Aliases of aliases: ten lines that unfold to 10^9 values."""
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(["a0: &a0 [x]", *lines]) + "\n"


def text_cases(folder):
    """Calibration texts: (what --text is given, words of the error)."""
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "zero.jsonl").symlink_to("/dev/zero")
    big_line(folder)
    bomb(folder / "zeros.jsonl.gz", bytes(1_000_000), 300)
    bomb(folder / "lines.txt.gz", b"a\n" * 500_000, 300)
    (folder / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (folder / "deep2.jsonl").write_text('{"a":' * 100_000 + "\n")
    (folder / "half.jsonl").write_text('\n{"text": "x \\ud800"}\n')
    (folder / "digits.jsonl").write_text('{"text": "a", "n": ' + "1" * 5000 + "}\n")
    (folder / "broken.parquet").write_bytes(b"PAR1" + bytes(1000) + b"PAR1")
    return {
        "pipe.jsonl": "is a pipe or a device",
        "zero.jsonl": "is a pipe or a device",
        "line.jsonl": "line 1: is longer than",
        "zeros.jsonl.gz": "is longer than",
        "lines.txt.gz": "unpacks to more than 100 times",
        "deep.jsonl": "nested too deeply",
        "deep2.jsonl": "line 1: the JSON is nested too deeply",
        "half.jsonl": "line 2: \\ud800 is half a surrogate pair",
        "digits.jsonl": "line 1: a number has too many digits",
        "broken.parquet": "broken.parquet: the parquet file is damaged",
        "half.jsonl=1e308": "the weight is 1e308",
    }


def recipe_cases(folder):
    os.mkfifo(folder / "pipe.yaml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    (folder / "deep.yaml").write_text("a: " + "[" * 100_000)
    (folder / "laughs.yaml").write_text(laughs())
    (folder / "loop.yaml").write_text("teacher: &a [*a]\n")
    (folder / "date.yaml").write_text("teacher: 2024-13-45\n")
    (folder / "large.yaml").write_text("# comment\n" * 200_000)
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    return {
        "pipe.yaml": "is a pipe or a device",
        "zero.yaml": "is a pipe or a device",
        "deep.yaml": "is nested too deeply",
        "laughs.yaml": "holds more than 10,000 values",
        "loop.yaml": "holds more than 10,000 values",
        "date.yaml": "is not valid YAML",
        "large.yaml": "has more than 1,000,000 bytes",
        "binary.yaml": "byte 128 is not UTF-8",
    }


@pytest.fixture(scope="module")
def outcomes(tiny_llama, tmp_path_factory):
    """{name: (exit status, seconds, peak bytes, output, expected words)} of every case."""
    folder, model = tmp_path_factory.mktemp("bounded"), str(tiny_llama)
    texts, recipes = text_cases(folder), recipe_cases(folder)
    commands = {name: ["run", str(folder / name), "--dry-run"] for name in recipes}
    words = texts | recipes | {"suite": "is a pipe or a device", "prompts": "is a pipe or a device", "stage": "nested"}
    for name in texts:
        commands[name] = ["quantize", model, "--dry-run", "--text", str(folder / name), "-o", str(folder / "out")]
    commands["suite"] = ["eval", model, "--reference", model, "--suite", str(folder / "zero.jsonl")]
    commands["prompts"] = ["generate", model, "--prompts", str(folder / "zero.jsonl"), "-o", str(folder / "answers")]
    commands["stage"] = ["distill", model, "--dry-run", "-o", str(folder / "out"), "--stage", "a: " + "[" * 50_000]
    shown = subprocess.run(
        [sys.executable, "-c", RUNNER, str(folder)], input=json.dumps(commands), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    rows = dict(item for line in shown.stdout.splitlines() for item in json.loads(line).items())
    return {name: rows[name] | {"words": words[name]} for name in commands}


@pytest.mark.slow
def test_every_unbounded_input_ends_soon_in_little_memory_with_one_line(outcomes):
    assert len(outcomes) == 22
    for name, row in outcomes.items():
        errors = [line for line in row["text"].splitlines() if line.startswith("Error:")]
        assert os.waitstatus_to_exitcode(row["status"]) == 1, (name, row)
        assert len(errors) == 1 and row["words"] in errors[0] and "Traceback" not in row["text"], (name, row)
        assert row["seconds"] < SECONDS and row["peak"] < PEAK_BYTES, (name, row)
