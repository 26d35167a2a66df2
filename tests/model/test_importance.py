"""Importance from activations: its means and norms; channels that are silent on the text are cut first."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.model.blocks import Weights, load_all
from compress.model.importance import measure_importance
from compress.model.student import cut, student_shape
from tests.model.test_student import CONFIGS, IDS, logits, teacher

HEAD = 8
MLP_NORM = {"gemma2": "pre_feedforward_layernorm"}
O_PROJ, DOWN_PROJ = "self_attn.o_proj", "mlp.down_proj"


def changed(name: str, change: Callable[[str, Tensor], None]) -> tuple[dict, Weights]:
    """A random teacher, after `change(parameter, tensor)` has changed its parameters in place."""
    config, weights = teacher(name)

    def read(parameter: str) -> Tensor:
        tensor = weights(parameter).clone()
        change(parameter, tensor)
        return tensor

    return config, read


def narrowed(config: dict, weights: Weights, ids: Tensor = IDS, **sizes: int) -> tuple[dict, Weights]:
    return cut(config, weights, student_shape(config, **sizes), range(5), measure_importance(config, weights, ids))


@pytest.mark.parametrize("name", CONFIGS)
def test_importance_is_the_token_mean_then_window_norm_of_activations(name):
    config, weights = teacher(name)
    model, recorded = load_all(config, weights, torch.float32), {}
    for index, block in enumerate(model.model.layers):
        for norm in ("input_layernorm", MLP_NORM.get(name, "post_attention_layernorm")):
            block.get_submodule(norm).register_forward_hook(
                lambda m, i, out, key=(index, norm): recorded.update({key: out})
            )
        for linear in (O_PROJ, DOWN_PROJ):
            block.get_submodule(linear).register_forward_hook(
                lambda m, inputs, out, key=(index, linear): recorded.update({key: inputs[0]})
            )
    with torch.no_grad():
        model(IDS, use_cache=False)
    importance = measure_importance(config, weights, IDS)
    hidden = sum(x.abs().mean(1).norm(dim=0) for (_, place), x in recorded.items() if "norm" in place)
    torch.testing.assert_close(importance.hidden(), hidden)
    for index in range(5):
        torch.testing.assert_close(importance.block(index).mlp, recorded[index, DOWN_PROJ].abs().mean(1).norm(dim=0))
        heads = recorded[index, O_PROJ].unflatten(-1, (6, HEAD)).norm(dim=-1).mean(1).norm(dim=0)
        torch.testing.assert_close(importance.block(index).query, heads)
        torch.testing.assert_close(importance.block(index).kv, heads.view(2, 3).norm(dim=1))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_silent_mlp_channel_is_cut_first_despite_large_weights(name):
    def silence(parameter: str, tensor: Tensor) -> None:
        """Let the gates of channels 3 and 40 use only hidden channel 5, and let the norm set that channel to 0."""
        if "post_attention_layernorm" in parameter:
            tensor[5] = 0
        if "gate_proj" in parameter:
            tensor[[3, 40]] = 0
            tensor[[3, 40], 5] = 50
        if "up_proj" in parameter:
            tensor[[3, 40]] *= 50

    config, weights = changed(name, silence)
    torch.testing.assert_close(logits(*narrowed(config, weights, intermediate_size=62)), logits(config, weights))
    by_weights = cut(config, weights, student_shape(config, intermediate_size=62), range(5))
    assert (logits(*by_weights) - logits(config, weights)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["tied llama", "qwen2"])
def test_a_hidden_channel_blocked_by_norms_is_cut_first(name):
    dead = [1, 7, *range(20, 30)]

    def mute(parameter: str, tensor: Tensor) -> None:
        if parameter.endswith("layernorm.weight"):
            tensor[dead] = 0
        if "embed_tokens" in parameter:
            tensor[:, dead] *= 20

    config, weights = changed(name, mute)
    _, read = narrowed(config, weights, hidden_size=36)
    kept = [channel for channel in range(48) if channel not in dead]
    for parameter in ("model.embed_tokens.weight", "model.layers.3.mlp.gate_proj.weight"):
        assert torch.equal(read(parameter), weights(parameter)[:, kept])
    for parameter in ("model.layers.0.mlp.down_proj.weight", "model.norm.weight"):
        assert torch.equal(read(parameter), weights(parameter)[kept])


def quiet_group(parameter: str, tensor: Tensor) -> None:
    """Make the values of KV head 0 almost 0, and the weights that use these values large."""
    if "v_proj" in parameter:
        tensor[:HEAD] *= 1e-6
    if "o_proj" in parameter:
        tensor[:, : 3 * HEAD] *= 1000
    if "q_proj" in parameter or "k_proj" in parameter:
        tensor[: HEAD if "k_proj" in parameter else 3 * HEAD] *= 1000


def test_a_silent_attention_group_is_cut_first_with_its_biases():
    config, weights = changed("qwen2", quiet_group)
    shape = {"hidden_size": 24, "num_heads": 3, "num_kv_heads": 1}
    _, read = narrowed(config, weights, **shape)
    _, by_weights = cut(config, weights, student_shape(config, **shape), range(5))
    for index in range(5):
        prefix = f"model.layers.{index}.self_attn."
        for name, rows in (("q_proj", 3 * HEAD), ("k_proj", HEAD), ("v_proj", HEAD)):
            bias = weights(f"{prefix}{name}.bias")
            assert torch.equal(read(f"{prefix}{name}.bias"), bias[rows:])
            assert torch.equal(by_weights(f"{prefix}{name}.bias"), bias[:rows])
            assert read(f"{prefix}{name}.weight").shape == (rows, 24)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_query_heads_stay_with_the_kv_head_they_use(name):
    config, weights = teacher(name)
    student, read = narrowed(config, weights, num_heads=4)
    assert (student["num_attention_heads"], student["num_key_value_heads"]) == (4, 2)
    importance = measure_importance(config, weights, IDS)
    for index in range(5):
        query = importance.block(index).query.view(2, 3)
        heads = [3 * g + h for g in range(2) for h in sorted(query[g].argsort(descending=True)[:2].tolist())]
        columns = [HEAD * head + channel for head in heads for channel in range(HEAD)]
        o_proj = f"model.layers.{index}.{O_PROJ}.weight"
        assert torch.equal(read(o_proj), weights(o_proj)[:, columns])


def test_importance_does_not_depend_on_the_order_of_windows():
    config, weights = teacher("qwen2")
    first, again, turned = (measure_importance(config, weights, ids) for ids in (IDS, IDS, IDS.flip(0)))
    assert torch.equal(first.hidden(), again.hidden())
    assert all(torch.equal(first.block(i).mlp, again.block(i).mlp) for i in range(5))
    torch.testing.assert_close(first.hidden(), turned.hidden())


def test_another_text_keeps_other_channels():
    config, weights = teacher("llama")
    one, other = (narrowed(config, weights, ids, intermediate_size=16)[1] for ids in (IDS, IDS + 25))
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(one(name), other(name))
