"""The sandbox contains generated code: with all layers, and with single kernel layers without Python's hook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.sandbox.layers import Limits
from compress.sandbox.run import ROOT, SandboxError, containment, run_python
from compress.sandbox.seccomp import steps
from compress.sandbox.syscalls import DENIED, denied_numbers

SHORT = Limits(seconds=10, cpu_seconds=1)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="generated code runs on Linux only")
pytestmark = LINUX


def status(code: str, limits: Limits = SHORT) -> str:
    return run_python(code, [], limits).status


CONTAINED = {
    "import os\nos.fork()": "refused",
    "import os\nos.system('true')": "refused",
    "import subprocess\nsubprocess.run(['true'])": "refused",
    "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()": "refused",
    "import os\nos.kill(os.getppid(), 9)": "refused",
    "while True: pass": "cpu",
    "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass": "killed",
    "x = bytearray(10 * 1024**3)": "memory",
    "import socket\nsocket.socket()": "refused",
    "import asyncio\nasyncio.run(asyncio.sleep(0))": "refused",
    "open('../out', 'w')": "refused",
    "open('/etc/passwd').read()": "refused",
    "open('/proc/self/environ').read()": "refused",
    "import os\nos.symlink('/etc', 'e')\nopen('e/passwd')": "refused",
    "import os\nos.remove('/etc/hostname')": "refused",
    "while True: print('x' * 999)": "output",
    "open('big', 'wb').write(bytes(2**22))": "output",
    "import ctypes": "refused",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))": "refused",
    "raise SystemExit(0)": "exited",
    "import os\nos._exit(0)": "exited",
    "import os\nfor f in range(3, 64):\n  try: os.write(f, b'{}')\n  except OSError: pass\nos._exit(0)": "exited",
    "import os\nos.abort()": "killed",
    "def f(:": "error",
    "1 / 0": "error",
    "assert False": "failed",
}


@pytest.mark.parametrize(("code", "expected"), CONTAINED.items())
def test_forbidden_actions_are_contained_and_named(code, expected):
    assert status(code) == expected


def test_many_small_allocations_end_at_the_memory_limit():
    assert status("x = []\nwhile True: x.append(bytearray(2**22))", Limits(memory=2**27)) == "memory"


def test_sleeping_ends_at_the_wall_clock_limit():
    assert status("import time\ntime.sleep(60)", Limits(seconds=0.5)) == "timeout"


def test_allowed_actions_pass():
    code = (
        "import collections, dataclasses, datetime, decimal, fractions, functools, heapq, itertools, json, math, re\n"
        "import threading\nt = threading.Thread(target=print, args=('x',)); t.start(); t.join()\n"
        "with open('note', 'w') as f: f.write('kept')\n"
        "import os; os.mkdir('d'); os.rename('note', 'd/note')\n"
        "def f(x): return x + 1\n"
        "if __name__ == '__main__': raise SystemExit"
    )
    assert run_python(code, ["assert f(1) == 2", "assert open('d/note').read() == 'kept'"], SHORT).status == "passed"


def test_the_detail_names_the_first_failing_test():
    outcome = run_python("def f(x): return x", ["assert f(1) == 1", "assert f(2) == 3"], SHORT)
    assert outcome.status == "failed" and "assert f(2) == 3" in outcome.detail


def test_environment_variables_never_reach_the_code(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert status("import os\nassert 'secret' not in os.environ.values() and len(os.environ) < 6") == "passed"


def test_nothing_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status("open('a', 'w').write('x')")
    assert not list(tmp_path.iterdir())


def test_a_sandbox_that_does_not_start_raises_an_error(monkeypatch):
    monkeypatch.setattr("compress.sandbox.run.BOOT", "raise SystemExit(7)")
    with pytest.raises(SandboxError, match="ended with code 7 before it started the code"):
        run_python("", [])


def has(layer: str) -> bool:
    return sys.platform.startswith("linux") and not containment()[layer].startswith("none")


def stderr_with(layer: str, code: str) -> str:
    """stderr of `code` in a process with this one kernel layer."""
    setup = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); {layer}"
    process = subprocess.run([sys.executable, "-I", "-S", "-c", f"{setup}\n{code}"], capture_output=True, text=True)
    return process.stderr


SECCOMP = "from compress.sandbox.seccomp import deny_calls; deny_calls()"
LANDLOCK = (
    "from compress.sandbox.layers import readable_folders; "
    "from compress.sandbox.landlock import confine_files; confine_files(readable_folders(), [sys.argv[-1]])"
)


@pytest.mark.parametrize(
    "code",
    [
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "import socket; socket.socket()",
        "os.kill(os.getppid(), 0)",
        "os.chmod('/tmp', 0o777)",
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.syscall(425, 1, 0); raise OSError(ctypes.get_errno())",
    ],
)
def test_seccomp_alone_refuses_the_call(code):
    if not has("seccomp"):
        pytest.skip("this kernel has no seccomp")
    error = stderr_with(SECCOMP, code)
    assert "PermissionError" in error or error.strip().endswith("OSError: 1"), error


def test_seccomp_alone_allows_threads():
    code = "import threading; t = threading.Thread(target=print); t.start(); t.join()"
    assert not has("seccomp") or stderr_with(SECCOMP, code) == ""


@pytest.mark.parametrize("code", ["open('/etc/passwd')", "open('/proc/self/environ')", "os.listdir('/root')"])
def test_landlock_alone_refuses_reading_outside(code):
    if not has("landlock"):
        pytest.skip("this kernel has no Landlock")
    assert "PermissionError" in stderr_with(LANDLOCK, code)


def test_landlock_alone_refuses_writing_outside(tmp_path):
    outside = tmp_path / "out"
    if has("landlock"):
        assert "PermissionError" in stderr_with(LANDLOCK, f"open({str(outside)!r}, 'w')") and not outside.exists()


@pytest.mark.parametrize(
    ("layer", "function", "code", "expected"),
    [
        ("landlock", "confine_files", "open('/etc/passwd')", "refused"),
        ("seccomp", "deny_calls", "import os\nos.fork()", "refused"),
        ("seccomp", "deny_calls", "import resource as r\nassert r.getrlimit(r.RLIMIT_NPROC) == (0, 0)", "passed"),
    ],
)
def test_a_missing_layer_is_reported_and_the_others_still_work(monkeypatch, layer, function, code, expected):
    boot = "import sys; sys.path.insert(0, sys.argv.pop()); import compress.sandbox.layers as layers; "
    boot += f"layers.{function} = lambda *a: open('/none'); "
    boot += "from compress.sandbox.child import main; sys.path.pop(0); main()"
    monkeypatch.setattr("compress.sandbox.run.BOOT", boot)
    outcome = run_python(code, [], SHORT)
    assert outcome.layers[layer].startswith("none: [Errno 2]") and outcome.status == expected


def test_no_call_is_denied_twice_and_the_filter_fits_the_kernel():
    for machine in (0, 1):
        numbers = list(denied_numbers(machine))
        assert len(numbers) == len(set(numbers)) and len(steps(machine)) < 4096
    assert len(DENIED) == 6 and os.uname().machine in ("x86_64", "aarch64")


def test_the_child_needs_the_standard_library_only():
    folder = Path(ROOT, "compress", "sandbox")
    assert list(folder.glob("*.py"))
    assert "".join(path.read_text() for path in folder.glob("*.py")).count("import torch") == 0
    assert status("") == "passed"  # runs with -S: other packages cannot be imported
