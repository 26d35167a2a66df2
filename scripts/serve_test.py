#!/usr/bin/env python
"""Test `qcompress serve` with a real vLLM and a real browser: python scripts/serve_test.py CHECKPOINT [CHECKPOINT]

Starts the service, opens its page in Chromium, and checks what a person would: a conversation of two turns, a stopped
answer, files of LibreOffice, a JSON answer, two checkpoints side by side, and a vLLM that is killed in mid-answer.
vLLM's own metrics show what reached it. --pictures FOLDER keeps pictures of desktop and phone width, light and dark.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx2
from screenshot import ARGUMENTS, SIZES, find_chromium

IDLE = "#send:not([hidden])"
START_SECONDS, ANSWER_SECONDS = 600, 120
STORY = "Write a very long story about a lighthouse and its keeper."
TABLE = "fruit,price\nkiwi,7.35\npear,2.10\n"
LETTER = "<html><body><h1>Report</h1><p>The bridge at Oberau was closed in 1987.</p></body></html>"


@dataclass
class Running:
    """A running service: the page, its names, and vLLM's socket by name."""

    page: Any
    names: list[str]
    process: "subprocess.Popen[str]"

    def metric(self, name: str, index: int = 0) -> float:
        """The value of one of vLLM's metrics, read from its own socket."""
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.socket(index)))) as client:
            text = client.get("http://engine/metrics", timeout=10).text
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE))

    def socket(self, index: int) -> Path:
        command = command_line(self.engine(index))
        return Path(os.fsdecode(command[command.index(b"--uds") + 1]))

    def engine(self, index: int) -> int:
        """The process id of the vLLM server of a model, which has taken the place of its guard."""
        name = self.names[index].encode()
        return next(one for one in children(self.process.pid) if name in command_line(one))


def command_line(process: int) -> list[bytes]:
    return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(text) for task in tasks for text in task.read_text().split()]


@contextmanager
def service(checkpoints: tuple[str, ...], options: list[str]) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The URL of `qcompress serve` on a free port, when all its engines are ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [] if "--upstream" in options else ["--logs", tempfile.mkdtemp(prefix="serve-test-")]
    command = [sys.executable, "-m", "compress.cli", "serve", *checkpoints, "--port", str(port), *logs, *options]
    process = subprocess.Popen(command, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or ready(url), START_SECONDS, "the engines are ready")
        if process.poll() is not None:
            raise SystemExit("the service has ended")
        yield url, process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def ready(url: str) -> bool:
    try:
        rows = httpx2.get(f"{url}/api/state", timeout=5).json()["models"]
    except httpx2.HTTPError:
        return False
    return all(row["status"] == "ready" for row in rows)


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until a condition is true. Fails after `seconds`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - started


def ask(page: Any, text: str, *, wait: bool = True) -> str:
    """Send a question; the last answer's text."""
    turns = page.locator(".turn").count()
    page.fill("#question", text)
    page.click("#send")
    wait_for(lambda: page.locator(".turn").count() > turns, ANSWER_SECONDS, "the question is sent")
    if not wait:
        return ""
    page.wait_for_selector(IDLE, timeout=1000 * ANSWER_SECONDS)
    return str(page.locator(".answer").last.inner_text())


def two_turns(run: Running) -> str:
    """Both turns are answered, and the second prompt holds the first turn."""
    start = run.metric("vllm:prompt_tokens_total")
    ask(run.page, "My name is Ada and I live in Paris.")
    first = run.metric("vllm:prompt_tokens_total") - start
    ask(run.page, "What is my name?")
    second = run.metric("vllm:prompt_tokens_total") - start - first
    answered = int(run.metric("vllm:generation_tokens_total"))
    assert run.page.locator(".turn").count() == 2 and second > first + 8, (first, second)
    return f"prompts of {first:.0f} and {second:.0f} tokens, {answered} tokens generated"


def stopped(run: Running) -> str:
    """Stop ends the work of vLLM within a second."""
    run.page.fill("#max-tokens", "2000")
    ask(run.page, STORY, wait=False)
    wait_for(lambda: run.metric("vllm:num_requests_running") == 1, 30, "vLLM runs the request")
    run.page.wait_for_timeout(1000)
    run.page.click("#stop")
    seconds = wait_for(lambda: run.metric("vllm:num_requests_running") == 0, 1.0, "vLLM has stopped")
    run.page.wait_for_selector(IDLE)
    text = run.page.locator(".answer").last.inner_text()
    assert "stopped" in text
    return f"vLLM had no running request after {seconds:.2f} s"


def office_files(run: Running) -> str:
    """A docx, an xlsx, an xls and a pdf of LibreOffice: their facts are read, and their tokens reach vLLM."""
    with tempfile.TemporaryDirectory() as folder:
        files = convert(Path(folder))
        run.page.set_input_files("#picker", [str(file) for file in files])
        wait_for(lambda: run.page.locator(".chip b").count() == len(files), 10, "all chips are there")
        wait_for(lambda: "reading" not in run.page.locator("#files").inner_text(), 60, "all files are read")
    for index, fact in enumerate(("Oberau was closed in 1987", "7.35", "7.35", "Oberau was closed in 1987")):
        run.page.locator(".chip .name").nth(index).click()
        text = run.page.locator("dialog .preview").inner_text()
        assert fact in text, (files[index].name, text)
        run.page.click("#dialog-buttons button")
    start = run.metric("vllm:prompt_tokens_total")
    run.page.fill("#max-tokens", "40")
    ask(run.page, "What does a kiwi cost?")
    tokens = run.metric("vllm:prompt_tokens_total") - start
    assert tokens > 150, tokens
    return f"docx, xlsx, xls and pdf, a prompt of {tokens:.0f} tokens"


def convert(folder: Path) -> list[Path]:
    """The letter and the table, written by LibreOffice in four formats."""
    (folder / "letter.html").write_text(LETTER)
    (folder / "table.csv").write_text(TABLE)
    program = shutil.which("soffice")
    if program is None:
        raise SystemExit("LibreOffice is missing: apt install libreoffice-writer-nogui libreoffice-calc-nogui")
    profile = f"-env:UserInstallation={(folder / 'profile').as_uri()}"
    for source, kinds in (
        ("letter.html", ("docx:MS Word 2007 XML", "pdf:writer_web_pdf_Export")),
        ("table.csv", ("xlsx", "xls")),
    ):
        for kind in kinds:
            command = [
                program,
                profile,
                "--headless",
                "--convert-to",
                kind,
                "--outdir",
                str(folder),
                str(folder / source),
            ]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
    return [folder / name for name in ("letter.docx", "table.xlsx", "table.xls", "letter.pdf")]


def json_answer(run: Running) -> str:
    """An answer that follows the schema, validated again."""
    run.page.check("#json")
    run.page.fill(
        "#schema",
        '{"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "year": {"type": "integer"}},'
        ' "required": ["city", "year"], "additionalProperties": false}',
    )
    run.page.fill("#max-tokens", "100")
    ask(run.page, "The bridge in Oberau was closed in 1987. Which city and year?")
    answer = run.page.locator(".answer").last
    assert "✓ valid JSON" in answer.inner_text(), answer.inner_text()
    run.page.uncheck("#json")
    return " ".join(answer.locator(".leaf").all_inner_texts())


def side_by_side(run: Running) -> str:
    """Two checkpoints answer one question, each with its time to the first token and tokens/s."""
    if len(run.names) < 2:
        return "left out: one checkpoint"
    run.page.fill("#max-tokens", "60")
    run.page.locator(".model").nth(1).click()
    ask(run.page, "What is the capital of France?")
    turn = run.page.locator(".turn").last
    assert turn.locator("h3").all_inner_texts() == run.names
    figures = turn.locator(".figures").all_inner_texts()
    assert all("first token" in text and "tokens/s" in text for text in figures), figures
    return " | ".join(figures)


def killed(run: Running) -> str:
    """vLLM is killed in mid-answer: the page explains it, and the next question is answered after the restart."""
    if run.page.locator(".model[aria-pressed=true]").count() > 1:
        run.page.locator(".model").nth(1).click()
    run.page.fill("#max-tokens", "2000")
    ask(run.page, STORY, wait=False)
    wait_for(lambda: run.metric("vllm:num_requests_running") == 1, 30, "vLLM runs the request")
    run.page.wait_for_timeout(500)
    os.kill(run.engine(0), signal.SIGKILL)
    run.page.wait_for_selector(IDLE, timeout=20_000)
    text = run.page.locator(".answer").last.locator(".bad").inner_text()
    assert "broke off" in text, text
    wait_for(lambda: run.page.locator("#notice").is_visible(), 20, "the page shows the restart")
    notice = run.page.locator("#notice").inner_text()
    assert "SIGKILL" in notice, notice
    seconds = wait_for(lambda: run.page.locator(".model.ready").count() == len(run.names), START_SECONDS, "restarted")
    run.page.fill("#max-tokens", "20")
    answer = ask(run.page, "Are you there?")
    assert "tokens" in answer and "broke off" not in answer, answer
    return f"restarted in {seconds:.0f} s"


CHECKS = (two_turns, stopped, office_files, json_answer, side_by_side, killed)


def take_pictures(browser: Any, url: str, folder: Path) -> None:
    """Pictures of a short conversation at both widths, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(url)
            page.wait_for_selector(".model.ready")
            for model in page.locator(".model").all()[1:]:
                model.click()
            page.click("#settings-button")
            page.fill("#max-tokens", "80")
            page.click("#settings-close")
            ask(page, "What is the capital of France, and what is it known for?")
            page.screenshot(path=folder / f"{name}-{scheme}.png")
            page.close()


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--vllm-python", help="Python of the environment that vLLM is installed in.")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for pictures.")
def main(checkpoints: tuple[str, ...], vllm_python: str | None, pictures: Path | None) -> None:
    from playwright.sync_api import Error, sync_playwright

    options = ["--runtime", "vllm", "--context", "2048", *(["--vllm-python", vllm_python] if vllm_python else [])]
    failed = 0
    with service(checkpoints, options) as (url, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, locale="en-US")
        page.goto(url)
        page.wait_for_selector(".model.ready")
        page.click("#settings-button")
        page.fill("#temperature", "0")
        page.fill("#max-tokens", "40")
        names = [row["id"] for row in httpx2.get(f"{url}/v1/models").json()["data"]]
        if pictures:
            take_pictures(browser, url, pictures)
        for check in CHECKS:
            started = time.monotonic()
            try:
                result = check(Running(page, names, process))
            except (AssertionError, Error) as error:
                failed, result = failed + 1, f"FAILED: {error}"
            click.echo(f"{check.__name__:<14} {time.monotonic() - started:5.1f} s  {result}")
        browser.close()
    click.echo(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
