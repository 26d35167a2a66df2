"""A function runs in a contained process: bytes in, bytes out, within its limits, and it ends with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.sandbox.layers import Limits
from compress.sandbox.run import ROOT, Contained, Result, SandboxError, containment, run

sys.path.insert(0, str(Path(__file__).parent))
FUNCTIONS = "contained_functions"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="generated code runs on Linux only")
SHORT = Limits(seconds=2, cpu_seconds=1, output=1000)


def call(name: str, data: bytes = b"", limits: Limits = SHORT, imports: tuple[str, ...] = ()) -> Result:
    return run(f"{FUNCTIONS}:{name}", data, limits, imports)


@pytest.mark.parametrize(
    ("function", "status", "detail"),
    [
        ("reverse", "returned", ""),
        ("fail", "error", "ZeroDivisionError"),
        ("return_text", "error", "TypeError: return_text must return bytes, not str"),
        ("leave", "exited", "SystemExit: 0"),
        ("leave_at_once", "exited", "ended with code 0 before the function returned"),
        pytest.param("loop", "cpu", "exceeded the CPU time limit", marks=pytest.mark.slow),
        pytest.param("loop_on", "killed", "ended by signal 9", marks=pytest.mark.slow),
        ("sleep", "timeout", "exceeded the time limit"),
        ("abort", "killed", "ended by signal"),
        ("fill_memory", "memory", "MemoryError"),
        ("fill_memory_slowly", "memory", "MemoryError"),
        ("write_a_file", "refused", "PermissionError"),
        ("read_accounts", "refused", "PermissionError"),
        ("open_many", "error", "OSError: [Errno 24] Too many open files"),
        ("return_too_much", "output", "1,001 bytes, more than 1,000"),
        ("flood_the_channel", "output", "wrote more than 1,000 bytes"),
        ("write_a_status", "exited", "ended with code 3"),
        ("write_nonsense", "exited", "ended with code 0"),
        pytest.param("close_the_channel", "exited", "ended with code None", marks=pytest.mark.slow),
    ],
)
def test_the_status_states_how_the_run_ended(function, status, detail):
    limits = Limits(seconds=1, cpu_seconds=1, output=1000) if status == "timeout" else Limits(10, 1, output=1000)
    result = call(function, b"abc", limits)
    assert result.status == status and result.detail.startswith(detail), result
    assert result.output == (b"cba" if status == "returned" else b"")


def test_large_data_passes_in_both_directions():
    data = os.urandom(3_000_000)
    assert call("reverse", data, Limits(60, 30, output=len(data))).output == data[::-1]


def test_imports_are_loaded_first_and_installed_packages_stay_readable():
    limits = Limits(60, 30, memory=2**30)
    assert call("yaml_to_json", b"{a: [1, 2]}", limits, ("yaml",)).output == b'{"a": [1, 2]}'
    assert call("import_later", b"yaml", limits, ("json",)).status == "returned"
    assert call("import_later", b"yaml", limits).detail == "ModuleNotFoundError: No module named 'yaml'"


@pytest.mark.parametrize(
    ("function", "imports", "reason"),
    [
        ("missing", (), "has no attribute 'missing'"),
        ("reverse", ("no_such_module",), "No module named 'no_such_module'"),
        ("reverse", ("import_starts_a_thread",), "the imports started 1 threads"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_an_error(function, imports, reason):
    with pytest.raises(SandboxError, match=reason):
        call(function, b"", SHORT, imports)


def test_environment_variables_never_reach_the_function(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert b"secret" not in call("environment").output and b"LANG" in call("environment").output


def test_no_descriptor_but_the_channel_is_inherited(tmp_path):
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        assert call("writable_descriptors").output == b"1 2 channel"


def test_nothing_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    call("reverse", b"abc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        ("landlock", "layers.confine_files"),
        ("seccomp", "layers.allow_calls"),
        ("resource limits", "layers.limit_resources"),
        ("one thread", "layers.count_threads"),
        ("ends with its parent", "layers.prctl"),
        ("seccomp", "seccomp.prctl"),
        ("landlock", "landlock.syscall"),
    ],
)
def test_without_a_layer_nothing_runs(monkeypatch, layer, function):
    module, _, name = function.partition(".")
    boot = f"import sys; sys.path.insert(0, sys.argv.pop()); import compress.sandbox.{module} as module\n"
    boot += f"def missing(*a, **k): raise OSError('not in this kernel')\nmodule.{name} = missing\n"
    boot += "from compress.sandbox.child import main; sys.path.pop(0); main()"
    monkeypatch.setattr("compress.sandbox.run.BOOT", boot)
    with pytest.raises(SandboxError, match=rf"did not start: OSError: {layer}: not in this kernel"):
        call("reverse")


def test_missing_namespaces_are_reported(monkeypatch):
    boot = "import sys; sys.path.insert(0, sys.argv.pop()); import compress.sandbox.layers as layers\n"
    boot += "def missing(flags): raise OSError('not in this container')\nlayers.unshare = missing\n"
    boot += "from compress.sandbox.child import main; sys.path.pop(0); main()"
    monkeypatch.setattr("compress.sandbox.run.BOOT", boot)
    result = call("reverse", b"ab")
    assert result.layers["namespaces"] == "none: not in this container" and result.output == b"ba"
    assert call("write_a_file").status == "refused"


def test_a_sandbox_that_does_not_start_raises_an_error(monkeypatch):
    monkeypatch.setattr("compress.sandbox.run.BOOT", "raise SystemExit(7)")
    with pytest.raises(SandboxError, match="ended with code 7 before it started the code"):
        call("reverse")


def test_threads_of_root_are_refused_because_they_have_no_limit():
    if os.getuid():
        pytest.skip("needs root")
    with pytest.raises(SandboxError, match="Linux does not limit the threads of root"):
        call("start_threads", b"", Limits(processes=4))


def test_containment_has_every_layer():
    assert set(containment()) >= {"landlock", "seccomp", "resource limits", "ends with its parent", "namespaces"}


def running(process: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_process_dies_with_a_killed_parent():
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
    code += "from compress.sandbox.run import Contained\n"
    code += f"p = Contained('{FUNCTIONS}:sleep', b''); p.start(); print(p.process.pid, flush=True); p.process.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert running(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    end = time.monotonic() + 5
    while running(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not running(child)


def test_a_process_whose_parent_has_ended_before_does_not_start(monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    with pytest.raises(SandboxError, match="the parent has ended"):
        call("reverse")


def test_leaving_the_block_kills_the_process():
    with Contained(f"{FUNCTIONS}:sleep", b"") as process:
        process.start()
        assert running(process.process.pid)
    assert not running(process.process.pid)


def test_other_systems_than_linux_are_refused(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux, not darwin"):
        call("reverse")
