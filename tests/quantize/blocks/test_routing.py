"""Experts are quantized by their own tokens; those without enough tokens are calibrated on all, and counted."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibration.capture import watch_inputs
from calibration.statistics import shrunk
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.scheme import Scheme
from compress.model.blocks import BlockModel
from compress.quantize.blocks.block import quantize_block
from compress.quantize.blocks.problem import BlockSettings
from compress.quantize.job import RunOptions, quantize_checkpoint
from compress.quantize.methods import table
from scripts.tiny_models import TEXT, save_tiny

EXPERTS, UNSEEN, CHOSEN = 8, 7, 2
GATE = "model.layers.{}.mlp.gate.weight"


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """8 experts: no token reaches expert 7, and token 9, whose embedding is large, always reaches expert 2.

    Of two opposite rows of a router, one is positive. So three pairs of them leave no place for a row of zeros.
    """
    folder = tmp_path_factory.mktemp("experts") / "model"
    save_tiny("qwen3_moe", folder, num_experts=EXPERTS, dtype=torch.float32)
    tensors = load_file(folder / "model.safetensors")
    for block in range(2):
        router = tensors[GATE.format(block)]
        router[4:7], router[UNSEEN] = -router[:3], 0
    tensors["model.embed_tokens.weight"][9] = 20 * tensors[GATE.format(0)][CHOSEN]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@torch.no_grad()
def test_an_expert_is_quantized_by_the_statistics_of_its_own_tokens(experts, monkeypatch):
    problems, inputs = [], []
    solve = table.METHODS["gptq"]

    def record(problem):
        problems.append(dataclasses.replace(problem, hessian=problem.hessian.clone()))
        return solve(problem)

    monkeypatch.setitem(table.METHODS, "gptq", record)
    checkpoint = Checkpoint(experts)
    blocks = BlockModel(checkpoint.config, checkpoint.tensor)
    ids = torch.randint(8, 40, (4, 48), generator=torch.Generator().manual_seed(0))
    with blocks.embedding_and_norm():
        batches = list(blocks.embed(ids).split(2))
        blocks.prepare([(2, 48)])
    settings = BlockSettings("gptq", Scheme(4, 32, True), 1e-4, 0.0, 2, 32)
    with blocks.block(0) as block:
        name = f"mlp.experts.{CHOSEN}.gate_proj"
        weight = block.linears[name].weight.clone()
        with watch_inputs({name: block.linears[name]}, lambda _, x: inputs.append(x.clone())):
            result = quantize_block(block, blocks.runner(block, 0), batches, settings, [None] * len(batches))
    tokens = torch.cat(inputs[1 : 1 + len(batches)])  # the first call traced the stages
    own = next(one for one in problems if one.weight[: len(weight)].equal(weight))
    expected = shrunk(tokens.T @ tokens / len(tokens), len(tokens))
    torch.testing.assert_close(own.hessian, expected, rtol=1e-4, atol=1e-5)
    row = next(row for row in result.rows if row["linear"] == name)
    assert row["tokens"] == len(tokens) and not row["shared_statistics"]


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(TEXT * 40))
    return QuantizeConfig(method="gptq", format="compressed-tensors", text=(str(text),), samples=6, seq_len=64)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_an_expert_without_a_token_sees_all_of_them_and_is_counted(experts, config, tmp_path):
    row = quantize_checkpoint(experts, tmp_path / "out", config)
    assert row["experts"] == 2 * EXPERTS and row["experts_without_tokens"] == 2 and row["shared_statistics"] >= 2
    rows = [one for one in Checkpoint(tmp_path / "out").record["rows"] if f"experts.{UNSEEN}." in one["linear"]]
    assert len(rows) == 6 and all(one["tokens"] == 0 and one["shared_statistics"] for one in rows)


def test_a_job_with_experts_continues_to_the_same_bytes(experts, config, tmp_path):
    quantize_checkpoint(experts, tmp_path / "whole", config)

    def stop(row):
        if row.get("block") == "1/2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(experts, tmp_path / "out", config, RunOptions(report=stop))
    quantize_checkpoint(experts, tmp_path / "out", config)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_the_schedule_never_changes_the_bytes_of_experts(experts, config, tmp_path):
    for memory in (0, 10**9):
        quantize_checkpoint(experts, tmp_path / str(memory), config, RunOptions(activation_memory=memory))
    assert weights(tmp_path / "0") == weights(tmp_path / str(10**9))
