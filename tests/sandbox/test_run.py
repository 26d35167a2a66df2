"""Generated code is contained: by all layers together, and by the kernel's alone where Python's hook is left out."""

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
def test_what_code_may_not_do_is_contained_and_named(code, expected):
    assert status(code) == expected


def test_memory_taken_in_pieces_ends_at_the_limit_too():
    assert status("x = []\nwhile True: x.append(bytearray(2**22))", Limits(memory=2**27)) == "memory"


def test_sleeping_ends_by_the_clock_and_not_by_cpu_time():
    assert status("import time\ntime.sleep(60)", Limits(seconds=0.5)) == "timeout"


def test_what_code_may_do_passes():
    code = (
        "import collections, dataclasses, datetime, decimal, fractions, functools, heapq, itertools, json, math, re\n"
        "import threading\nt = threading.Thread(target=print, args=('x',)); t.start(); t.join()\n"
        "with open('note', 'w') as f: f.write('kept')\n"
        "import os; os.mkdir('d'); os.rename('note', 'd/note')\n"
        "def f(x): return x + 1\n"
        "if __name__ == '__main__': raise SystemExit"
    )
    assert run_python(code, ["assert f(1) == 2", "assert open('d/note').read() == 'kept'"], SHORT).status == "passed"


def test_the_first_test_that_fails_is_told():
    found = run_python("def f(x): return x", ["assert f(1) == 1", "assert f(2) == 3"], SHORT)
    assert found.status == "failed" and "assert f(2) == 3" in found.detail


def test_no_secret_of_the_environment_arrives(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert status("import os\nassert 'secret' not in os.environ.values() and len(os.environ) < 6") == "passed"


def test_nothing_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status("open('a', 'w').write('x')")
    assert not list(tmp_path.iterdir())


def test_a_sandbox_that_does_not_start_is_an_error_and_no_verdict(monkeypatch):
    monkeypatch.setattr("compress.sandbox.run.BOOT", "raise SystemExit(7)")
    with pytest.raises(SandboxError, match="ended with 7 before it began"):
        run_python("", [])


def has(layer: str) -> bool:
    return sys.platform.startswith("linux") and not containment()[layer].startswith("none")


def alone(layer: str, code: str) -> str:
    """stderr of `code` in a process that only one kernel layer contains."""
    setup = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); {layer}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"{setup}\n{code}"], capture_output=True, text=True)
    return done.stderr


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
    error = alone(SECCOMP, code)
    assert "PermissionError" in error or error.strip().endswith("OSError: 1"), error


def test_seccomp_alone_lets_threads_run():
    code = "import threading; t = threading.Thread(target=print); t.start(); t.join()"
    assert not has("seccomp") or alone(SECCOMP, code) == ""


@pytest.mark.parametrize("code", ["open('/etc/passwd')", "open('/proc/self/environ')", "os.listdir('/root')"])
def test_landlock_alone_refuses_what_lies_outside(code):
    if not has("landlock"):
        pytest.skip("this kernel has no Landlock")
    assert "PermissionError" in alone(LANDLOCK, code)


def test_landlock_alone_refuses_writing_outside(tmp_path):
    outside = tmp_path / "out"
    if has("landlock"):
        assert "PermissionError" in alone(LANDLOCK, f"open({str(outside)!r}, 'w')") and not outside.exists()


@pytest.mark.parametrize(
    ("layer", "function", "code", "expected"),
    [
        ("landlock", "confine_files", "open('/etc/passwd')", "refused"),
        ("seccomp", "deny_calls", "import os\nos.fork()", "refused"),
        ("seccomp", "deny_calls", "import resource as r\nassert r.getrlimit(r.RLIMIT_NPROC) == (0, 0)", "passed"),
    ],
)
def test_a_layer_that_is_missing_is_told_and_the_others_stay(monkeypatch, layer, function, code, expected):
    boot = "import sys; sys.path.insert(0, sys.argv.pop()); import compress.sandbox.layers as layers; "
    boot += f"layers.{function} = lambda *a: open('/none'); "
    boot += "from compress.sandbox.child import main; sys.path.pop(0); main()"
    monkeypatch.setattr("compress.sandbox.run.BOOT", boot)
    found = run_python(code, [], SHORT)
    assert found.layers[layer].startswith("none: [Errno 2]") and found.status == expected


def test_no_number_is_denied_twice_and_the_filter_fits_a_kernel():
    for machine in (0, 1):
        numbers = list(denied_numbers(machine))
        assert len(numbers) == len(set(numbers)) and len(steps(machine)) < 4096
    assert len(DENIED) == 6 and os.uname().machine in ("x86_64", "aarch64")


def test_the_child_needs_nothing_but_the_standard_library():
    folder = Path(ROOT, "compress", "evaluate", "sandbox")
    assert "".join(path.read_text() for path in folder.glob("*.py")).count("import torch") == 0
    assert status("") == "passed"  # it runs with -S, without any other package
