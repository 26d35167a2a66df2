"""An engine as a child: ready, restarted once, explained, and gone with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from compress.core.errors import QCompressError
from compress.serve.engine.command import EngineCommand
from compress.serve.engine.process import EngineProcess, describe_end
from compress.serve.upstream import Upstream
from tests.serve.services import until

pytestmark = pytest.mark.slow  # runs whole jobs

FAKE = "scripts/fake_engine.py"


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False


def make_engine(tmp_path, code=None, report=lambda row: None):
    """An engine that runs the fake server, or `code`."""
    socket = tmp_path / "0.sock"
    arguments = [sys.executable, FAKE, "--uds", str(socket)] if code is None else [sys.executable, "-c", code]
    upstream = Upstream("http://engine", "fake", socket=str(socket))
    command = EngineCommand(arguments, {"SECRET": "variable"}, socket)
    return EngineProcess("fake", command, tmp_path / "logs" / "fake.log", upstream.healthy, report)


async def wait_for(engine, status):
    while engine.status != status:
        await asyncio.sleep(0.02)


def output(log):
    """What the engine has written, below the first line of its log."""
    return log.read_text().partition("\n")[2].strip()


def test_a_killed_engine_is_restarted_once_and_both_ends_are_explained(tmp_path):
    rows = []

    async def main():
        engine = make_engine(tmp_path, report=rows.append)
        task = asyncio.create_task(engine.run())
        for _ in range(2):
            await asyncio.wait_for(wait_for(engine, "ready"), 30)
            os.kill(engine.process.pid, signal.SIGKILL)
            while engine.status == "ready":
                await asyncio.sleep(0.02)
        await asyncio.wait_for(task, 10)

    asyncio.run(main())
    assert [row["status"] for row in rows] == ["ready", "restarting", "ready", "ended"]
    assert all("SIGKILL" in row["cause"] for row in rows if row["status"] in ("restarting", "ended"))


def test_an_engine_that_cannot_start_is_not_restarted(tmp_path):
    rows = []
    code = "raise ValueError('the weights are too large')"

    async def main():
        engine = make_engine(tmp_path, code, rows.append)
        await asyncio.wait_for(engine.run(), 30)
        return engine.cause

    assert asyncio.run(main()) == "ValueError: the weights are too large"
    assert [row["status"] for row in rows] == ["ended"]


def test_an_engine_does_not_get_the_keys_of_the_service(tmp_path, monkeypatch):
    for name in ("QCOMPRESS_SERVE_TOKEN", "QCOMPRESS_UPSTREAM_KEY", "ORDINARY"):
        monkeypatch.setenv(name, f"value of {name}")
    engine = make_engine(tmp_path, "import os; print(dict(os.environ))")
    asyncio.run(asyncio.wait_for(engine.run(), 30))
    output = engine.log.read_text()
    assert "value of ORDINARY" in output and "QCOMPRESS" not in output and "SECRET" in output


def test_closing_ends_the_engine_and_everything_that_it_started(tmp_path):
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '1000']).pid, flush=True); time.sleep(1000)"

    async def main():
        engine = make_engine(tmp_path, code)
        task = asyncio.create_task(engine.run())
        log = tmp_path / "logs" / "fake.log"
        while not (log.exists() and output(log)):
            await asyncio.sleep(0.02)
        sleeper, child = int(output(log)), engine.process.pid
        await engine.close()
        await asyncio.wait_for(task, 5)
        return sleeper, child

    for pid in asyncio.run(main()):
        assert until(lambda pid=pid: not alive(pid))


def test_the_engine_ends_when_its_parent_is_killed(tmp_path):
    program = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        sys.path.insert(0, "{Path.cwd()}")
        from tests.serve.engine.test_process import make_engine
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
        asyncio.run(make_engine(Path("{tmp_path}"), code).run())
    """)
    log = tmp_path / "logs" / "fake.log"
    parent = subprocess.Popen([sys.executable, "-c", program])
    assert until(lambda: log.exists() and output(log).isdecimal(), 30)
    child = int(output(log))
    assert alive(child)
    parent.kill()
    parent.wait()
    assert until(lambda: not alive(child))


def test_the_log_of_the_run_before_is_kept_and_only_its_user_can_read_it(tmp_path):
    log = tmp_path / "logs" / "fake.log"
    for text in ("first", "second"):
        asyncio.run(make_engine(tmp_path, f"raise SystemExit('{text}')").run())
    assert (output(log), output(log.with_name("fake.log.old"))) == ("second", "first")
    assert log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["fake.log", "fake.log.old"])
def test_a_foreign_file_is_not_moved_or_replaced_by_a_log(tmp_path, name):
    engine = make_engine(tmp_path, "raise SystemExit('new')")
    (tmp_path / "logs" / name).write_text("a diary")
    with pytest.raises(QCompressError, match=f"{name}: exists"):
        asyncio.run(engine.run())
    assert (tmp_path / "logs" / name).read_text() == "a diary"


def test_a_log_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(QCompressError, match="logs"):
        make_engine(tmp_path, "")


@pytest.mark.parametrize(
    ("code", "output", "cause"),
    [
        (137, "ValueError: old", "SIGKILL"),
        (139, "", "SIGSEGV"),
        (
            1,
            "INFO start\n(EngineCore pid=3) ERROR [core.py:9] RuntimeError: no memory\nSystemExit: 1",
            "RuntimeError: no memory",
        ),
        (3, "", "ended with code 3"),
    ],
)
def test_an_end_is_described_by_its_first_cause(code, output, cause):
    assert cause in describe_end(code, output)
