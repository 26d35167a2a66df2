"""Guarded processes end with the process that started them, and so do all their children."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compress.core.guard import guarded, worker_command
from tests.processes import processes_in, running, wait_for

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends processes on Linux only")
SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
time.sleep(600)
"""
BENCH = """
import compress.evaluate.speed.measure as measure
measure.WORKERS["transformers"] = "sleeper"
measure.worker_command = lambda module, *files, make=measure.worker_command: make(module, {processes!r}, *files)
measure.speed_rows([{model!r}], measure.Timing("transformers", prompt_tokens=8, new_tokens=2), measure.Resources())
"""
VLLM = """
from contextlib import closing
import compress.runtimes.vllm_process as runtime
from compress.checkpoint.read import Checkpoint
from compress.core.sampling import Sampling
runtime.worker_command = lambda module, *rest, make=runtime.worker_command: make("sleeper", {processes!r})
runtime.PATIENCE = 1.0
with closing(runtime.VllmProcess(Checkpoint({model!r}))) as opened:
    opened.generate([[1]], Sampling(8))
"""
IN_NET = "from compress.cli.net import net\nwith net({{}}):\n    exec({code!r})\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the module `sleeper`, which starts a child and writes both numbers to the file of its argument."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("code", [BENCH, VLLM], ids=["bench", "vllm"])
def test_no_child_outlives_a_command_that_a_signal_ends(folder, tiny_llama, code, number):
    file = folder / "processes"
    code = IN_NET.format(code=code.format(model=str(tiny_llama), processes=str(file)))
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
        wait_for(lambda: len(processes_in(file)) == 2)
        assert all(map(running, processes_in(file)))
        parent.send_signal(number)
    wait_for(lambda: not any(map(running, processes_in(file))), 10)
    assert list((folder / "temporary").iterdir()) == []  # no half file either


@pytest.mark.parametrize("own_group", [True, False])
def test_a_worker_ends_with_a_killed_parent_before_its_imports(folder, own_group):
    file = folder / "processes"
    code = "import subprocess, sys; from compress.core.guard import worker_command\n"
    code += f"subprocess.Popen(worker_command('sleeper', {str(file)!r}), start_new_session={own_group}).wait()"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        wait_for(lambda: len(processes_in(file)) == 2)
        parent.kill()
    worker, child = processes_in(file)
    wait_for(lambda: not running(worker), 10)
    if own_group:
        wait_for(lambda: not running(child), 10)
    else:
        os.kill(child, signal.SIGKILL)


def test_a_worker_runs_the_module_with_its_arguments_and_exit_code(folder):
    (folder / "adder.py").write_text(
        "import sys\nif __name__ == '__main__':\n    sys.exit(sum(map(int, sys.argv[1:])))\n"
    )
    assert subprocess.run(worker_command("adder", "3", "4"), start_new_session=True).returncode == 7


def test_a_guard_keeps_no_pipe_of_its_worker_open(folder):
    (folder / "printer.py").write_text("print('done')\n")
    done = subprocess.run(worker_command("printer"), stdout=subprocess.PIPE, start_new_session=True, timeout=60)
    assert done.stdout == b"done\n"


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *rest: open(sys.argv[1] + ".term", "w").close())
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(1)
"""


def test_a_command_with_patience_gets_sigterm_and_then_sigkill(tmp_path):
    file = tmp_path / "process"
    command = [sys.executable, "-c", STUBBORN, str(file)]
    code = "import subprocess; from compress.core.guard import guarded\n"
    code += f"subprocess.Popen(guarded({command!r}, 0.2), start_new_session=True).wait()"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        wait_for(lambda: processes_in(file))
        parent.kill()
    wait_for(lambda: not running(processes_in(file)[0]), 10)
    assert file.with_name("process.term").exists()


def test_children_of_a_killed_command_end_with_it(folder):
    file = folder / "processes"
    with subprocess.Popen(worker_command("sleeper", str(file)), start_new_session=True) as command:
        wait_for(lambda: len(processes_in(file)) == 2)
        assert processes_in(file)[0] == command.pid
        command.kill()
    wait_for(lambda: not running(processes_in(file)[1]), 10)


def test_a_command_whose_parent_has_ended_does_not_start(tmp_path):
    command = guarded([sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"])
    command[4] = "1"  # the process with this id is not the parent
    assert subprocess.run(command, start_new_session=True, stderr=subprocess.DEVNULL).returncode == 1
    assert not (tmp_path / "started").exists()
