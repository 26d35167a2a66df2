"""The whole service as a process: it starts, answers, explains its end, and leaves nothing behind."""

import shutil
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from compress.cli import cli
from compress.core.errors import QCompressError
from compress.serve.run import open_port
from compress.serve.settings import Address
from tests.serve.services import ask, until

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def serving(tmp_path):
    """serving(*arguments) starts `qcompress serve` on a free port; it returns the process and a client."""
    processes = []

    def start(*arguments):
        port = free_port()
        command = [sys.executable, "-m", "compress.cli", "serve", *map(str, arguments), "--port", str(port)]
        logs = [] if "--upstream" in arguments else ["--logs", str(tmp_path)]
        process = subprocess.Popen([*command, *logs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(process)
        return process, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def healthy(process, client):
    def check():
        try:
            return client.get("/health").status_code == 200
        except httpx2.HTTPError:
            assert process.poll() is None, process.stdout.read()
            return False

    return check


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_two_checkpoints_answer_by_transformers_until_a_signal(serving, tiny_llama, tiny_qwen2, number, code):
    process, client = serving(tiny_llama, tiny_qwen2, "--runtime", "transformers")
    assert until(healthy(process, client), 120)
    assert until(lambda: all(row["status"] == "ready" for row in client.get("/api/state").json()["models"]), 120)
    for name in ("llama", "qwen2"):
        answer = client.post("/v1/chat/completions", json=ask("the quick fox", name, max_tokens=5)).json()
        assert answer["usage"]["completion_tokens"] <= 5 and answer["model"] == name
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == code and "the service has ended" in output and "Traceback" not in output


def test_an_upstream_answers_and_its_models_are_listed(serving, engine_server):
    process, client = serving("--upstream", engine_server[1])
    assert until(healthy(process, client), 60)
    assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["small", "large"]
    answer = client.post("/v1/chat/completions", json=ask("hello")).json()
    assert answer["choices"][0]["message"]["content"] == "echo: hello "


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--host", "0.0.0.0", "--upstream", "http://127.0.0.1:1"], 1, "set --token"),
        (["--token", "short", "--upstream", "http://127.0.0.1:1"], 1, "12 or more"),
        (["--upstream", "ftp://x"], 1, "must be a URL"),
        (["--upstream", "http://127.0.0.1:1", "--logs", "x"], 1, "--logs: has no effect with --upstream"),
        (["--upstream", "http://127.0.0.1:1"], 1, "start the server first"),
        ([], 2, "Missing argument"),
        (["LLAMA", "--context", "5000", "--runtime", "transformers"], 1, "--context 5,000"),
        (["LLAMA", "--tensor-parallel-size", "2", "--runtime", "transformers"], 1, "--tensor-parallel-size 2"),
        (["LLAMA", "--vllm-python", "/nothing"], 1, "--vllm-python /nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_options_are_one_line_that_names_the_option(arguments, code, words, tiny_llama):
    arguments = [str(tiny_llama) if one == "LLAMA" else one for one in arguments]
    result = CliRunner().invoke(cli, ["serve", *arguments])
    assert result.exit_code == code and words in result.output and "Traceback" not in result.output


def test_a_port_in_use_is_one_line(engine_server):
    port = engine_server[1].rpartition(":")[2]
    result = CliRunner().invoke(cli, ["serve", "--upstream", engine_server[1], "--port", port])
    assert result.exit_code == 1 and f"--port {port}" in result.output and "use another --port" in result.output


def test_an_address_of_another_machine_is_blamed_on_host():
    with (
        pytest.raises(QCompressError, match=r"--host 192\.0\.2\.1 .*; correct --host"),
        open_port(Address(host="192.0.2.1")),
    ):
        pass


def test_a_checkpoint_that_check_refuses_is_not_served(tiny_llama, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    result = CliRunner().invoke(cli, ["serve", str(broken), "--runtime", "transformers"])
    assert result.exit_code == 3 and "T10" in result.output and "qcompress check" in result.output


def test_a_dry_run_prints_the_plan_and_starts_nothing(tiny_llama):
    result = CliRunner().invoke(cli, ["serve", str(tiny_llama), "--runtime", "transformers", "--dry-run"])
    assert result.exit_code == 0 and "context of 1,024 tokens" in result.output
    assert "compress.serve.fallback.server" in result.output
