"""The sizes of an engine follow from the memory, the checkpoint and the options."""

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.speed.capacity import checkpoint_footprint, overhead
from compress.evaluate.speed.kv_cache import kv_bytes
from compress.serve.engine.probe import Environment
from compress.serve.engine.sizes import fallback_sizes, vllm_sizes

CPU = Environment("python", "0.32.0")


@pytest.fixture(scope="module")
def checkpoint(tiny_llama):
    return Checkpoint(tiny_llama)


def gpu(checkpoint, requests, tokens, *, share=0.92, gpus=1, capability=89):
    """A GPU that holds the weights and exactly the caches of so many requests."""
    one = checkpoint_footprint(checkpoint)
    size = one.weights + gpus * overhead(one.config) + requests * kv_bytes(one.blocks, tokens)
    return Environment("python", "0.32.0", gpus, int(size / share / gpus) + 100, capability)


def test_a_cpu_serves_the_models_context_to_a_few_requests(checkpoint):
    sizes = vllm_sizes(checkpoint, CPU)
    assert (sizes.context, sizes.sequences, sizes.queue, sizes.dtype) == (1024, 16, 64, "float16")


def test_on_a_gpu_the_requests_at_once_fill_its_memory(checkpoint):
    sizes = vllm_sizes(checkpoint, gpu(checkpoint, 5, 1024))
    assert (sizes.context, sizes.sequences, sizes.queue) == (1024, 5, 20)


def test_two_engines_share_the_memory(checkpoint):
    environment = gpu(checkpoint, 5, 1024, share=0.46)
    assert vllm_sizes(checkpoint, environment, engines=2).sequences == 5
    assert vllm_sizes(checkpoint, environment, engines=2).share == 0.46


def test_memory_is_counted_over_all_gpus(checkpoint):
    environment = gpu(checkpoint, 6, 1024, gpus=2)
    assert vllm_sizes(checkpoint, environment, gpus=2).sequences == 6


def test_options_win_over_the_prediction(checkpoint):
    sizes = vllm_sizes(checkpoint, CPU, context=512, queue=3)
    assert (sizes.context, sizes.queue) == (512, 3)


def test_a_context_beyond_the_model_is_refused_with_both_numbers(checkpoint):
    with pytest.raises(QCompressError, match=r"--context 2,000.*1,024"):
        vllm_sizes(checkpoint, CPU, context=2000)
    with pytest.raises(QCompressError, match="--context"):
        fallback_sizes(checkpoint, 2000, None)


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_bytes(checkpoint):
    with pytest.raises(QCompressError, match=r"does not fit.*weights"):
        vllm_sizes(checkpoint, Environment("python", "0.32.0", 1, 500_000_000, 89))


def test_a_context_that_does_not_fit_is_refused_with_the_one_that_does(checkpoint):
    with pytest.raises(QCompressError, match=r"--context 1,024 does not fit, 512 tokens do"):
        vllm_sizes(checkpoint, gpu(checkpoint, 1, 512), context=1024)


def test_transformers_answers_one_request_at_a_time(checkpoint):
    sizes = fallback_sizes(checkpoint, None, None)
    assert (sizes.context, sizes.sequences, sizes.queue) == (1024, 1, 4)
