"""What an older vLLM cannot read: features of checkpoints and of the KV cache, with the release that brought them.

Releases were dated in the source distributions on PyPI: the release in `since` has the feature, and the release before
it has not. Features that every release of MINIMUM or newer has are not listed. An image whose version is unknown is not
refused.
"""

from collections.abc import Callable
from dataclasses import dataclass

from compress.checkpoint.formats import format_of
from compress.checkpoint.read import Checkpoint
from compress.core.config import KV_DTYPES, QuantizeConfig
from compress.model.shapes import find_vocabulary

MINIMUM = "0.18.0"
_, _, INT8, INT4 = KV_DTYPES


def packed_head(checkpoint: Checkpoint, kv_dtype: str) -> bool:
    layout = format_of(checkpoint)
    head = find_vocabulary(checkpoint.config).head
    return (
        layout is not None and layout.name == "compressed-tensors" and f"{head}.{layout.packed}" in checkpoint.tensors
    )


def packed_embedding(checkpoint: Checkpoint, kv_dtype: str) -> bool:
    layout = format_of(checkpoint)
    embedding = find_vocabulary(checkpoint.config).embedding
    return layout is not None and f"{embedding}.{layout.packed}" in checkpoint.tensors


def int8_cache(checkpoint: Checkpoint, kv_dtype: str) -> bool:
    return kv_dtype == INT8


def int4_cache(checkpoint: Checkpoint, kv_dtype: str) -> bool:
    return kv_dtype == INT4


@dataclass(frozen=True)
class Feature:
    """A feature in words, the first release that has it, the change that added it, and whether a request uses it."""

    name: str
    since: str
    source: str
    used: Callable[[Checkpoint, str], bool]


FEATURES = (
    Feature(
        "a packed head in compressed-tensors", "0.20.0", "https://github.com/vllm-project/vllm/pull/37291", packed_head
    ),
    Feature("a packed embedding", "0.23.0", "https://github.com/vllm-project/vllm/pull/44340", packed_embedding),
    Feature(f"a KV cache in {INT8}", "0.20.0", "https://github.com/vllm-project/vllm/pull/38378", int8_cache),
    Feature(f"a KV cache in {INT4}", "0.25.0", "https://github.com/vllm-project/vllm/pull/40835", int4_cache),
)
NOT_IN_0_19 = """
    BailingMoeV3ForCausalLM Cohere2MoeForCausalLM DeepseekV4ForCausalLM ExaoneMoeForCausalLM Glm5NextForCausalLM
    GraniteMoeSWAForCausalLM GraniteSWAForCausalLM HYV3ForCausalLM HYV4ForCausalLM HrmTextForCausalLM
    InklingForCausalLM InklingForConditionalGeneration K2HorizonForCausalLM LagunaForCausalLM
    LongcatFlashNgramForCausalLM MellumForCausalLM MiMoV2ForCausalLM MiniMaxM3SparseForCausalLM
    Ministral3ForCausalLM MuseGlimmerForCausalLM NanbeigeForCausalLM Param2MoEForCausalLM Qwen3_5ForCausalLM
    Qwen3_5MoeForCausalLM Qwen4ExpForCausalLM Rnj1ForCausalLM TeleChat3ForCausalLM VaultGemmaForCausalLM
"""
ABSENT_MODELS = {"0.19.0": frozenset(NOT_IN_0_19.split())}  # of vllm_models.py, not in that release's registry


def missing_feature(checkpoint: Checkpoint, kv_dtype: str, vllm: str | None) -> str | None:
    """The first thing that a version of vLLM cannot read, in words, or None. A version of None is unknown."""
    if vllm is None:
        return None
    absent = ABSENT_MODELS.get(vllm, frozenset()).intersection(checkpoint.config.get("architectures") or ())
    if absent:
        return f"its image has vLLM {vllm}, which does not implement {min(absent)}"
    for feature in FEATURES:
        if numbers(vllm) < numbers(feature.since) and feature.used(checkpoint, kv_dtype):
            return f"its image has vLLM {vllm}, and {feature.name} needs {feature.since}"
    return None


def reads_layout(layout: QuantizeConfig, vllm: str | None) -> bool:
    """Whether a version of vLLM reads a layout that `quantize` would write. A version of None reads all."""
    used: dict[object, bool] = {
        packed_head: layout.format == "compressed-tensors" and layout.head_bits < 16,
        packed_embedding: layout.embedding_bits < 16,
    }
    newer = (feature for feature in FEATURES if vllm is not None and numbers(vllm) < numbers(feature.since))
    return not any(used.get(feature.used, False) for feature in newer)


def numbers(version: str) -> tuple[int, ...]:
    """A release as numbers that compare: "0.19.0" is (0, 19, 0)."""
    return tuple(int(part) for part in version.split(".")[:3])
