"""A fake backend: its driver copies a checkpoint that qcompress made before, or does what BEHAVIOUR says instead.

The driver runs in a real process, in this Python. `table.DRIVERS` points to its folder.
"""

from pathlib import Path

import pytest

import compress.backends.table as table
from compress.core.config import QuantizeConfig
from compress.quantize.job import quantize_checkpoint

DRIVER = '''\
# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
import json, os, resource, shutil, subprocess, sys, time
from pathlib import Path

READY = Path({ready!r})

def copy(request):
    """Write the checkpoint, without the files that only qcompress writes."""
    shutil.copytree({checkpoint!r}, request["out"], ignore=shutil.ignore_patterns("qcompress*", "README.md"))

def change(request, name, value):
    file = Path(request["out"]) / "config.json"
    config = json.loads(file.read_text())
    (config["quantization_config"] if name in config["quantization_config"] else config)[name] = value
    file.write_text(json.dumps(config))

def quantize(request, windows, report):
    report(f"{{len(windows)}} windows of {{len(windows[0])}}, the first begins with {{windows[0][:3]}}")
    {behaviour}
    return 1.5
'''
SLEEP = (
    "child = subprocess.Popen(['sleep', '1000']); "
    "READY.with_suffix('.tmp').write_text(f'{os.getpid()} {child.pid}'); "
    "READY.with_suffix('.tmp').rename(READY); time.sleep(1000)"
)
BEHAVIOURS = {
    "works": "copy(request)",
    "hangs": f"copy(request); {SLEEP}",
    "ignores SIGTERM": f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}",
    "dies": "copy(request); os.kill(os.getpid(), 9)",
    "raises": "copy(request); raise ValueError('the blocks are\\nlost')",
    "writes half": "copy(request); file = Path(request['out']) / 'model.safetensors'; os.truncate(file, 5000)",
    "writes nothing": "pass",
    "lies about its format": "copy(request); change(request, 'quant_method', 'gptq')",
    "lies about its group size": "copy(request); change(request, 'group_size', 128)",
    "changes the model": "copy(request); change(request, 'rms_norm_eps', 0.5)",
    "contradicts itself": "copy(request); change(request, 'torch_dtype', 'float32')",
    "forgets keys": "copy(request); change(request, 'torch_dtype', None); change(request, 'rope_theta', None)",
    "fills the disk": "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); copy(request)",
    "floods stderr": "copy(request); [sys.stderr.write('x' * 99 + '\\n') for _ in range(300_000)]",
    "writes a link": "copy(request); (Path(request['out']) / 'tokenizer.json').unlink(missing_ok=True); "
    "(Path(request['out']) / 'tokenizer.json').symlink_to('/etc/passwd')",
    "writes no result": "copy(request); os._exit(0)",
    "writes a false result": "copy(request); Path(request['result']).write_text('[1'); os._exit(0)",
    "prints its variables": "copy(request); print('VARIABLES', sorted(os.environ), os.getcwd())",
    "floods progress": "copy(request); [report('step') for _ in range(3000)]; "
    "open(request['progress'], 'ab').write(b'\\xff\\n[]\\n{\"step\": 3}\\n{\"step\": \"\\\\u001b[31mred\"}\\n')",
}


@pytest.fixture(scope="session")
def packed(tiny_llama, tmp_path_factory):
    """An awq checkpoint of tiny_llama in groups of 32."""
    out = tmp_path_factory.mktemp("packed") / "awq"
    quantize_checkpoint(tiny_llama, out, QuantizeConfig(method="rtn", format="awq", group_size=32))
    return out


@pytest.fixture
def fake(packed, tmp_path, monkeypatch):
    """fake(behaviour) puts a fake driver in the place of that of autoawq. Returns its folder."""
    folder = tmp_path / "drivers"

    def place(behaviour: str) -> Path:
        folder.mkdir(exist_ok=True)
        fields = {"ready": str(tmp_path / "ready"), "checkpoint": str(packed), "behaviour": BEHAVIOURS[behaviour]}
        (folder / "autoawq.py").write_text(DRIVER.format(**fields))
        (folder / "autoawq.lock").write_text("")
        monkeypatch.setattr(table, "DRIVERS", folder)
        table.BACKENDS["autoawq"].__dict__.pop("pins", None)
        return folder

    yield place
    table.BACKENDS["autoawq"].__dict__.pop("pins", None)
