"""The byte budget: legal layouts, their exact bytes, the choice among them, and the error if no layout fits."""

import json
from pathlib import Path

import pytest
import torch

from compress.core.config import FORMAT_NAMES, QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.grid import Scheme, min_max, quantize, split_groups
from compress.quantize.layout import budget
from compress.quantize.layout.job_plan import plan_quantize
from compress.quantize.layout.plan import make_plan, read_source

SEED = Path(__file__).parents[3] / "recipes/configs/seed-student.json"


def config(format="compressed-tensors", **changes):
    return QuantizeConfig(**({"method": "gptq", "format": format} | changes))


def ranked(source, format="compressed-tensors"):
    return budget.rank(budget.plan_layouts(source, config(format), [format]), budget.estimated_harm(source))


def test_a_layout_of_the_seed_student_fits_into_two_gigabytes():
    source = read_source(SEED)
    assert make_plan(source, config()).bytes > 2.2e9
    best = budget.choose(ranked(source), 2 * 10**9)
    assert best is not None and best.plan.bytes <= 2 * 10**9


def test_a_plan_without_weights_equals_the_plan_with_weights(tiny_qwen2, tmp_path):
    (tmp_path / "config.json").write_text((tiny_qwen2 / "config.json").read_text())
    whole, bare = read_source(tiny_qwen2), read_source(tmp_path)
    for layout in budget.layouts(whole, config(), FORMAT_NAMES):
        assert make_plan(whole, layout).bytes == make_plan(bare, layout).bytes


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_every_ranked_layout_has_bytes_and_harm(tiny_qwen2, tiny_llama, format):
    for path in (tiny_qwen2, tiny_llama):
        for each in ranked(read_source(path), format):
            assert each.plan.bytes > 0 and each.harm > 0


def test_fewer_bits_are_smaller_and_do_more_harm(tiny_qwen2):
    source = read_source(tiny_qwen2)
    harm = budget.estimated_harm(source)
    chain = [
        config(head_bits=bits, embedding_bits=ends, group_size=size, eight_bit=wide)
        for bits, ends, size, wide in (
            (16, 16, 32, ("down_proj",)),
            (16, 16, 32, ()),
            (8, 16, 32, ()),
            (8, 8, 32, ()),
            (4, 8, 32, ()),
            (4, 8, 64, ()),
        )
    ]
    plans = [make_plan(source, each) for each in chain]
    sizes, harms = [plan.bytes for plan in plans], [harm(plan) for plan in plans]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert harms == sorted(harms) and len(set(harms)) == len(harms)


def test_worthwhile_layouts_are_unbeaten_and_include_every_choice(tiny_qwen2):
    every = ranked(read_source(tiny_qwen2))
    kept = budget.worthwhile(every)
    for each in kept:
        beaten = [
            other
            for other in every
            if other.harm <= each.harm and other.plan.bytes <= each.plan.bytes and other is not each
        ]
        assert all((other.harm, other.plan.bytes) == (each.harm, each.plan.bytes) for other in beaten)
    for limit in {each.plan.bytes for each in every}:
        assert budget.choose(every, limit) in kept


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 128), (8, 64)])
def test_the_expected_rounding_error_is_that_of_normal_weights(bits, group_size, sym):
    grouped = split_groups(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)), group_size)
    scales, zeros = min_max(grouped, Scheme(bits, group_size, sym, Dtype.float32))
    codes = quantize(grouped, scales[..., None], zeros[..., None], bits)
    error = ((codes - zeros[..., None]) * scales[..., None] - grouped).square().mean().item()
    assert budget.rounding_error(Scheme(bits, group_size, sym, Dtype.float16)) == pytest.approx(error, rel=0.15)


REFUSED = [
    ("tiny_qwen2", {"format": "gptq", "embedding_bits": 8}, "--embedding-bits 8: .*use --format compressed-tensors"),
    ("tiny_llama", {"head_bits": 4}, "tied.*--embedding-bits 8"),
    ("tiny_llama", {"embedding_bits": 8}, "tied.*--head-bits 4"),
    ("tiny_qwen2", {"method": "awq", "format": "awq", "head_bits": 8}, "--format awq: .* cannot store 8 bits"),
    ("tiny_qwen2", {"eight_bit": ("z_proj",)}, "--eight-bit z_proj: no linear has this name"),
]


@pytest.mark.parametrize(("model", "changes", "words"), REFUSED)
def test_a_layout_that_vllm_cannot_load_is_refused(request, model, changes, words):
    with pytest.raises(QCompressError, match=words):
        plan_quantize(request.getfixturevalue(model), config(**changes))


CHANGED = [
    ({"model_type": "mixtral"}, {"head_bits": 4, "embedding_bits": 8}, "cannot load a packed embedding"),
    ({"model_type": "opt"}, {"head_bits": 4}, "cannot load a packed head"),
    ({"model_type": "olmo2"}, {"eight_bit": ("down_proj",)}, "are unknown for this model_type"),
]


@pytest.mark.parametrize(("model", "changes", "words"), CHANGED)
def test_layouts_that_vllm_lacks_for_a_model_type_are_refused(tiny_qwen2, model, changes, words):
    source = read_source(tiny_qwen2)
    source.linears, source.vocabulary  # noqa: B018  cached before the model type changes
    source.model.update(model)
    with pytest.raises(QCompressError, match=words):
        make_plan(source, config(**changes))


def test_gptq_packs_no_head_whose_vocabulary_vllm_would_pad(tiny_qwen2, tmp_path):
    changed = json.loads((tiny_qwen2 / "config.json").read_text()) | {"vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    source = read_source(tmp_path)
    with pytest.raises(QCompressError, match="not a multiple of 64"):
        make_plan(source, config("gptq", head_bits=4))
    assert make_plan(source, config(head_bits=4)).schemes["lm_head"].sym  # 100 rows fill no words of 8 zeros


def test_eight_bits_apply_to_the_whole_stage(tiny_qwen2):
    plan = make_plan(read_source(tiny_qwen2), config(eight_bit=("layers.1.self_attn.k_proj",)))
    assert plan.eight_bit == {f"model.layers.1.self_attn.{letter}_proj" for letter in "qkv"}
    assert all(plan.schemes[name].sym for name in plan.eight_bit)


def test_an_exceeded_budget_names_the_options_that_fit(tiny_qwen2):
    size = plan_quantize(tiny_qwen2, config("gptq"))[1].bytes
    with pytest.raises(QCompressError, match=r"1 over --max-size; with (--[a-z-]+ \S+ )+it has") as caught:
        plan_quantize(tiny_qwen2, config("gptq", max_size=size - 1))
    assert "--format" not in str(caught.value), "a layout of the same format fits"


def test_a_budget_that_no_layout_fits_names_the_smallest_layout(tiny_qwen2):
    smallest = min(each.plan.bytes for each in ranked(read_source(tiny_qwen2)))
    with pytest.raises(QCompressError, match=rf"no layout fits: the smallest, .* has {smallest:,} bytes, 1 over"):
        plan_quantize(tiny_qwen2, config(max_size=smallest - 1))
    with pytest.raises(QCompressError, match=f"it has {smallest:,} bytes"):
        plan_quantize(tiny_qwen2, config(max_size=smallest))


def test_the_flags_name_every_changed_setting_of_a_layout(tiny_qwen2):
    line = budget.format_flags(config(head_bits=4, embedding_bits=8, group_size=64, eight_bit=("q_proj", "o_proj")))
    assert line == (
        "--method gptq --format compressed-tensors --group-size 64 --head-bits 4 --embedding-bits 8 "
        "--eight-bit q_proj --eight-bit o_proj"
    )
    assert budget.format_flags(config(head_bits=4), config()) == "--head-bits 4"
    assert budget.format_flags(config(), config(eight_bit=("q_proj",))) == "no --eight-bit"


LOADERS = [
    ({}, (True, True)),
    ({"head_bits": 4}, (True, True)),
    ({"head_bits": 8}, (False, True)),
    ({"head_bits": 4, "embedding_bits": 8}, (False, False)),
    ({"eight_bit": ("down_proj",)}, (False, True)),
    ({"format": "gptq"}, (True, True)),
    ({"format": "gptq", "head_bits": 4}, (True, False)),
    ({"format": "gptq", "eight_bit": ("down_proj",)}, (False, False)),
]


@pytest.mark.parametrize(("changes", "expected"), LOADERS)
def test_each_loader_runs_only_the_layouts_of_its_table(tiny_qwen2, changes, expected):
    row = budget.loaders(make_plan(read_source(tiny_qwen2), config(**changes)))
    assert (row["vllm_cpu"], row["transformers"]) == expected and row["vllm_gpu"]
