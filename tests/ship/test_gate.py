"""The gate refuses what does not run on a board, with numbers, and lets pass what does."""

import re
from dataclasses import replace

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.errors import GateFailure, QCompressError
from compress.evaluate.speed.capacity import checkpoint_footprint, predict
from compress.ship.boards import find_board
from compress.ship.gate import Request, check_fit

ORIN, T4, FOUR = find_board("orin-nano"), find_board("t4"), find_board("4x-rtx-4090d")
STUDENT, SMALL, LARGE = "seed-student", "qwen2.5-1.5b-instruct", "qwen2.5-7b-instruct"


@pytest.fixture(scope="module")
def student(headers):
    return headers(STUDENT)


@pytest.fixture(scope="module")
def large(headers):
    return headers(LARGE)


def refusal(checkpoint, board, request):
    with pytest.raises(GateFailure) as caught:
        check_fit(checkpoint, board, request)
    assert caught.value.exit_code == 3 and "\n" not in caught.value.message
    return caught.value.message


def test_the_parts_are_those_of_a_prediction(student):
    board = find_board("h100")
    fit = check_fit(student, board, Request(1536, 256))
    row = predict(checkpoint_footprint(student), board.hardware, 1024, 512, 0)
    assert fit.weights == row["weights_bytes"] and fit.allowance == row["overhead_bytes"]
    assert fit.kv_cache == 256 * row["kv_bytes_per_request"] and fit.usable == row["usable_bytes"]
    assert fit.needed == fit.weights + fit.kv_cache + fit.allowance


def test_the_last_byte_decides(student):
    fit = check_fit(student, T4, Request(4096, 4))
    exact = replace(T4, hardware=replace(T4.hardware, memory=fit.needed, share=1.0))
    assert check_fit(student, exact, Request(4096, 4)).needed == exact.hardware.usable
    short = replace(exact, hardware=replace(exact.hardware, memory=fit.needed - 1))
    assert "1 B too much" in refusal(student, short, Request(4096, 4))


def test_a_refusal_of_memory_has_every_part_in_bytes(large):
    message = refusal(large, ORIN, Request(4096, 4))
    parts = re.search(r"weights ([\d.]+) GB \+ KV cache ([\d.]+) MB \(4 requests of 4,096 tokens, auto\)", message)
    assert parts and parts[1] == "5.57" and parts[2] == "939.5"
    assert "vLLM may use 5.99 GB: 1.41 GB too much" in message


def test_the_suggested_request_fits_and_a_longer_one_does_not(large):
    board = find_board("rtx-4060")
    message = refusal(large, board, Request(32768))
    context = int(re.search(r"--requests 1 --context (\d+) fits", message)[1])
    assert check_fit(large, board, Request(context)).needed <= board.hardware.usable
    refusal(large, board, Request(context + 32))
    requests = int(re.search(r"--requests (\d+) fits", refusal(large, board, Request(4096, 9)))[1])
    assert check_fit(large, board, Request(4096, requests)) and refusal(large, board, Request(4096, requests + 1))


def test_a_smaller_kv_cache_makes_room(large):
    board = find_board("rtx-4060")
    half = check_fit(large, board, Request(4096, 4, "int8_per_token_head"))
    whole = check_fit(large, board, Request(4096, 4))
    assert 0.5 < half.kv_cache / whole.kv_cache < 0.52
    assert half.flags[-2:] == ("--kv-cache-dtype", "int8_per_token_head")


def test_loading_on_unified_memory_counts_the_largest_file(large):
    board = replace(ORIN, hardware=replace(ORIN.hardware, memory=9_000_000_000, share=0.99))
    message = refusal(large, board, Request(512))
    assert re.search(r"loading it .* needs 9\.56 GB, .* 8\.00 GB are free: 1\.56 GB too much", message)
    assert check_fit(large, replace(T4, hardware=replace(board.hardware, unified=False)), Request(512)).load_peak == 0


def test_unified_memory_gives_vllm_only_what_is_needed(student):
    fit = check_fit(student, ORIN, Request(4096, 4))
    assert fit.needed / ORIN.hardware.memory <= fit.gpu_memory_utilization <= fit.needed / ORIN.hardware.memory + 0.01
    assert "--kv-cache-memory-bytes" in fit.flags and check_fit(student, T4, Request(64)).gpu_memory_utilization == 0.92
    cache = int(fit.flags[fit.flags.index("--kv-cache-memory-bytes") + 1])
    assert fit.kv_cache < cache < 1.01 * fit.kv_cache


def test_four_gpus_refuse_groups_that_do_not_divide(student, headers):
    message = refusal(student, FOUR, Request(4096))
    assert "6912/4 = 1728 inputs is not a multiple of group_size 128" in message
    assert message.endswith("use --tensor-parallel-size 2, or quantize with --group-size 64")
    assert "--tensor-parallel-size" in check_fit(student, FOUR, Request(4096, tensor_parallel_size=2)).flags
    small_groups = headers(STUDENT, "awq", group_size=64)
    four, one = (check_fit(small_groups, board, Request(4096)) for board in (FOUR, find_board("rtx-4090")))
    assert (four.usable, four.allowance) == (4 * one.usable, 4 * one.allowance) and four.weights == one.weights
    assert "has 1 GPU" in refusal(student, T4, Request(4096, tensor_parallel_size=2))


def test_an_older_vllm_refuses_what_it_cannot_read(headers):
    packed = headers(SMALL, "compressed-tensors", embedding_bits=8, head_bits=8)
    message = refusal(packed, ORIN, Request(1024))
    assert "vLLM 0.19.0, and a packed head in compressed-tensors needs 0.20.0" in message
    assert "qcompress plan MODEL --hardware orin-nano" in message
    assert check_fit(packed, T4, Request(1024)).weights < 1.2e9
    cache = refusal(headers(SMALL), ORIN, Request(1024, 1, "int8_per_token_head"))
    assert "a KV cache in int8_per_token_head needs 0.20.0" in cache


def test_a_dtype_that_the_gpu_lacks_is_refused(student, headers):
    assert "fp8 needs compute capability 8.0; use another --kv-cache-dtype" in refusal(
        student, T4, Request(64, 1, "fp8")
    )
    assert "fp8 with head size 160 needs compute capability 8.9" in refusal(student, ORIN, Request(64, 1, "fp8"))
    assert check_fit(headers(SMALL), ORIN, Request(64, 1, "fp8")).kv_cache > 0
    old = replace(T4, hardware=replace(T4.hardware, capability=70))
    assert "vLLM's 4-bit kernels need compute capability 7.5" in refusal(student, old, Request(64))


def test_turing_computes_bfloat16_models_in_float16(headers):
    assert check_fit(headers(SMALL), T4, Request(64)).flags[-2:] == ("--dtype", "float16")
    assert "--dtype" not in check_fit(headers(SMALL), ORIN, Request(64)).flags


def test_a_full_disk_is_refused_with_the_missing_bytes(student):
    size = check_fit(student, ORIN, Request(64)).disk
    assert check_fit(student, ORIN, Request(64, disk=size)).disk == size
    assert "1 B too much" in refusal(student, ORIN, Request(64, disk=size - 1))


def test_a_context_beyond_the_models_is_bad_input(student):
    with pytest.raises(QCompressError, match=r"--context 40,000: .* has a context of 32,768 tokens") as caught:
        check_fit(student, ORIN, Request(40_000))
    assert caught.value.exit_code == 1


def test_a_tiny_checkpoint_with_data_fits_everywhere(tiny_llama):
    checkpoint = Checkpoint(tiny_llama)
    for name in ("orin-nano", "h100"):
        fit = check_fit(checkpoint, find_board(name), Request(1024, 8))
        assert fit.weights == sum(info.bytes for info in checkpoint.tensors.values()) and fit.tokens_per_s
