"""Tables of the models that vLLM supports, from the sources of vLLM 0.32.0. A newer version mostly supports more.

Architectures are the keys of _TEXT_GENERATION_MODELS, the text part of _TRANSFORMERS_SUPPORTED_MODELS and some of
_MULTIMODAL_MODELS in vllm/model_executor/models/registry.py. The other tables list models that can load a packed head
(ParallelLMHead) or a packed embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.suggest import did_you_mean
from compress.core.errors import QCompressError

VLLM_VERSION = "0.32.0"
OWN_CODE = """
    AXK1ForCausalLM AfmoeForCausalLM ApertusForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM
    BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM BloomForCausalLM ChatGLMForConditionalGeneration
    ChatGLMModel Cohere2ForCausalLM Cohere2MoeForCausalLM CohereForCausalLM DbrxForCausalLM DeciLMForCausalLM
    DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM DeepseekV3ForCausalLM DeepseekV4ForCausalLM
    Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM ExaoneForCausalLM ExaoneMoEForCausalLM
    ExaoneMoeForCausalLM FalconForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM GPT2LMHeadModel
    GPTJForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3nForCausalLM Gemma4ForCausalLM GemmaForCausalLM
    Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM Glm5NextForCausalLM GlmMoeDsaForCausalLM
    GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
    GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM HCXVisionV2ForCausalLM
    HYV3ForCausalLM HYV4ForCausalLM HrmTextForCausalLM HyperCLOVAXForCausalLM IQuestCoderForCausalLM
    IQuestLoopCoderForCausalLM InklingForCausalLM InklingForConditionalGeneration InternLM2ForCausalLM
    InternLM3ForCausalLM JambaForCausalLM K2HorizonForCausalLM KimiLinearForCausalLM LLaMAForCausalLM
    LagunaForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM Llama4ForCausalLM LlamaForCausalLM
    LongcatFlashForCausalLM LongcatFlashNgramForCausalLM Mamba2ForCausalLM MambaForCausalLM MiMoForCausalLM
    MiMoV2FlashForCausalLM MiMoV2ForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MiniMaxM2ForCausalLM
    MiniMaxM3SparseForCausalLM Ministral3ForCausalLM MistralForCausalLM MistralLarge3ForCausalLM
    MixtralForCausalLM MuseGlimmerForCausalLM NemotronForCausalLM NemotronHForCausalLM
    NemotronHPuzzleForCausalLM OPTForCausalLM OlmoHybridForCausalLM OlmoeForCausalLM OrionForCausalLM
    PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM Param2MoEForCausalLM
    Phi3ForCausalLM PhiMoEForCausalLM Plamo3ForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM
    Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM Qwen4ExpForCausalLM
    Rnj1ForCausalLM SarvamMLAForCausalLM SarvamMoEForCausalLM SolarForCausalLM StableLmForCausalLM
    Step1ForCausalLM Step3TextForCausalLM Step3p5ForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM
    TeleFLMForCausalLM Zamba2ForCausalLM
"""
THROUGH_TRANSFORMERS = """
    ArceeForCausalLM CwmForCausalLM FlexOlmoForCausalLM GPTBigCodeForCausalLM GPTNeoXForCausalLM GlmForCausalLM
    HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM Jais2ForCausalLM MellumForCausalLM NanbeigeForCausalLM
    Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM PhiForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM
    Starcoder2ForCausalLM VaultGemmaForCausalLM
"""
MULTIMODAL = """
    Gemma3ForConditionalGeneration Gemma4ForConditionalGeneration Mistral3ForConditionalGeneration
    Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration Qwen3VLForConditionalGeneration
    Qwen3VLMoeForConditionalGeneration Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration
"""  # the language models of these are quantized; vLLM has further ones
ARCHITECTURES = frozenset(f"{OWN_CODE} {THROUGH_TRANSFORMERS} {MULTIMODAL}".split())

NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})  # vllm/config/model.py
NO_PACKED_HEAD = frozenset({"opt", "qwen3_next", "falcon_h1", "gemma2", "gemma3n", "cohere", "cohere2"})
EMBEDDING_BY_NAME = frozenset(
    {"qwen2", "qwen3", "qwen3_moe", "gemma3", "gemma3_text", "gemma3n", "gemma4", "stablelm", "gpt2", "deepseek_v2"}
)
EMBEDDING_BY_CLASS = EMBEDDING_BY_NAME | {"llama", "mistral", "granite", "exaone", "apertus"}

GROUP_SIZES = (-1, 32, 64, 128)  # supported by Marlin; -1 is one group per output


def check_architecture(path: Path, config: Mapping[str, Any]) -> None:
    """Raises QCompressError if vLLM does not implement the architecture of a config.json in the folder `path`."""
    names = config.get("architectures") or ["no architecture"]
    if not ARCHITECTURES.intersection(names):
        raise QCompressError(
            f"{path / 'config.json'}: architectures: vLLM {VLLM_VERSION} does not implement {names[0]}, so it "
            f"could not load the result; give a model that vLLM supports{did_you_mean(names[0], ARCHITECTURES)}"
        )
