"""Ctrl-C and SIGTERM: one line about the kept work, the shell's exit code, and a run that continues."""

import os
import signal

import pytest
import yaml
from click.testing import CliRunner

from compress.cli import cli
from compress.cli.console import Reporter
from compress.core.interrupt import Terminated, on_interrupt

pytestmark = pytest.mark.slow  # runs whole jobs

SIZES = ["--samples", "8", "--seq-len", "32"]
RESUME = "run the same command again to continue"


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also in tests that a shell started in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop_at(monkeypatch, number, is_moment):
    """Send the signal to this process when a progress row for which `is_moment` is true is reported, once."""
    sent = []

    def report(reporter, row):
        if not sent and is_moment(row):
            sent.append(row)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Reporter, "__call__", report)


def commands(model, folder):
    """(arguments, the row to stop at, the end of the line that is printed) by command."""
    out, prompts, recipe = folder / "out", folder / "prompts.txt", folder / "recipe.yaml"
    prompts.write_text("who?\nwhat?\nwhen?\n")
    variant = {"name": "a", "method": "rtn", "group_size": 32}
    recipe.write_text(yaml.safe_dump({"teacher": str(model), "out": str(out), "quantize": [variant]}))
    generate = ["--prompts", str(prompts), "--max-tokens", "2", "--batch-size", "1", "--keep-truncated"]
    return {
        "quantize": (
            [str(model), "-o", str(out), "--method", "gptq", *SIZES],
            lambda row: row.get("block") == "1/2",
            f"1 finished blocks are kept in {folder}/.out.partial; {RESUME}",
        ),
        "distill": (
            [str(model), "-o", str(out), "--blocks", "1", "--steps", "4", "--save-every", "1", "--seq-len", "32"],
            lambda row: str(row.get("step", "")).startswith("3"),
            f"the last saved state is kept in {folder}/.out.distill; {RESUME}",
        ),
        "capture": (
            [str(model), "-o", str(out), "--shard-windows", "2", *SIZES],
            lambda row: str(row.get("windows", "")).startswith("4/"),
            f"complete shards are kept in {out}; {RESUME}",
        ),
        "generate": (
            [str(model), "-o", str(out), "--runtime", "transformers", *generate],
            lambda row: "prompts" in row,
            f"finished batches are kept in {folder}/.out.0-of-1.part; {RESUME}",
        ),
        "eval": (
            [str(model), "-o", str(out), "--reference", str(model), "--kind", "qa", "--limit", "1"],
            lambda row: row.get("items") == "1/1",
            f"stored answers are kept in {out}; {RESUME}",
        ),
        "run": (
            [str(recipe)],
            lambda row: row.get("block") == "2/2",
            f"2 finished blocks are kept in {out}/.a.partial; {RESUME}",
        ),
    }


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("command", ["quantize", "distill", "capture", "generate", "eval", "run"])
def test_an_interrupt_prints_what_is_kept_and_the_next_run_ends(
    tiny_llama, tmp_path, monkeypatch, command, number, word
):
    arguments, is_moment, line = commands(tiny_llama, tmp_path)[command]
    with monkeypatch.context() as patch:
        stop_at(patch, number, is_moment)
        stopped = CliRunner().invoke(cli, [command, *arguments])
    assert stopped.exit_code == 128 + number, stopped.output
    assert stopped.stderr.splitlines()[-1] == f"{word}: {line}"
    assert not list(tmp_path.glob(".*.lock"))
    again = CliRunner().invoke(cli, [command, *arguments])
    assert again.exit_code == 0, again.output


def test_an_interrupt_before_the_first_block_prints_that_nothing_was_kept(tiny_llama, tmp_path, monkeypatch):
    stop_at(monkeypatch, signal.SIGTERM, lambda row: "memory_bytes" in row)
    stopped = CliRunner().invoke(cli, ["quantize", str(tiny_llama), "-o", str(tmp_path / "out"), *SIZES])
    assert stopped.exit_code == 143 and stopped.stderr.splitlines()[-1] == "terminated: nothing was kept"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_ends_the_process_as_usual_after_the_command(tiny_llama):
    before = signal.getsignal(signal.SIGTERM)
    CliRunner().invoke(cli, ["check", str(tiny_llama)])
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_innermost_job_describes_the_kept_work():
    outer, inner, nothing = (on_interrupt(lambda line=line: line) for line in ("outer", "inner", None))
    with pytest.raises(Terminated) as caught, outer, inner, nothing:
        raise Terminated
    assert caught.value.__notes__ == ["inner"]
