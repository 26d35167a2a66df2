"""Attacks on other processes, files, the disk, the network and the kernel: none has an effect outside."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.sandbox.layers import Limits
from compress.sandbox.run import run

sys.path.insert(0, str(Path(__file__).parent))
from attacks import ATTACKS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="generated code runs on Linux only")
REFUSED = (  # what a refused call raises in Python
    "PermissionError",
    "OSError: [Errno 1]",
    "OSError: [Errno 38] refused",
    "RuntimeError: can't start new thread",
    "ValueError: not allowed to raise maximum limit",
    "FileNotFoundError: [Errno 2] No usable temporary directory",
)


def state(pid: int, folder: Path) -> tuple[object, ...]:
    """Everything of the victim that the attacks aim at."""
    file = folder / "file"
    facts = file.stat()
    return (
        os.getpriority(os.PRIO_PROCESS, pid),
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(pid),
        os.sched_getscheduler(pid),
        resource.prlimit(pid, resource.RLIMIT_NOFILE),
        Path(f"/proc/{pid}/oom_score_adj").read_text(),
        file.read_text(),
        (facts.st_mode, facts.st_mtime_ns, facts.st_uid, facts.st_nlink),
        os.listxattr(file),
        sorted(path.name for path in folder.iterdir()),
    )


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], tuple[object, ...], object]]:
    """The result of every attack, and the victim's state before and after them."""
    folder = tmp_path_factory.mktemp("victim")
    (folder / "file").write_text("kept")
    (folder / "secret").write_text("secret")
    os.setxattr(folder / "file", "user.kept", b"kept")
    with subprocess.Popen(["sleep", "600"]) as victim:
        try:
            before = state(victim.pid, folder)
            paths = {"file": str(folder / "file"), "folder": str(folder), "secret": str(folder / "secret")}
            request = json.dumps({"pid": victim.pid, **paths}).encode()
            result = run("attacks:all_of_them", request, Limits(seconds=60), imports=["ctypes", "tempfile"])
            assert result.status == "returned", result
            assert victim.poll() is None
            yield json.loads(result.output), before, state(victim.pid, folder)
        finally:
            victim.kill()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attack_is_refused(attacked, attack):
    results, _, _ = attacked
    assert results[attack].startswith(REFUSED), results[attack]


def test_attacks_leave_the_victim_as_it_was(attacked):
    _, before, after = attacked
    assert before == after


def test_there_are_more_than_a_hundred_attacks():
    assert len(ATTACKS) > 100
