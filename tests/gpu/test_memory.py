"""The memory of a GPU: what a job needs is compared with what is free, before the job starts."""

import pytest
from click.testing import CliRunner

from compress.checkpoint.memory_check import check_gpu_memory
from compress.cli import cli
from compress.core.errors import QCompressError
from tests.pretend.cuda_api import forget_accelerator


@pytest.mark.parametrize(
    ("command", "options", "cure"),
    [
        ("quantize", ["--samples", "8", "--seq-len", "32"], "a larger GPU, or --device cpu"),
        ("distill", ["--blocks", "1", "--seq-len", "32", "--steps", "1"], "use --gradient-checkpointing, --cache"),
    ],
)
def test_a_job_that_does_not_fit_is_refused_before_any_work(gpu, tiny_llama, tmp_path, command, options, cure):
    forget_accelerator()
    gpu.total = 300_000  # bytes
    arguments = [command, str(tiny_llama), "--out", str(tmp_path / "out"), *options, "--device", "cuda"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1 and "GB of GPU memory" in result.output and cure in result.output, result.output
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_the_need_and_the_free_memory(gpu):
    gpu.total, gpu.used = 24 * 10**9, 4 * 10**9
    check_gpu_memory("model", 20 * 10**9, "use a larger GPU")
    with pytest.raises(QCompressError, match=r"needs about 21\.0 GB of GPU memory, but 20\.0 of 24\.0 GB are free"):
        check_gpu_memory("model", 21 * 10**9, "use a larger GPU")
    gpu.used = 0
