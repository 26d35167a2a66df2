"""What other runtimes read: one row of LOADERS each, from their documentation or their source, with page or version.

`check --runs-in NAME` compares a checkpoint with a row, by the R rules of `loader_rules.py`. A column of None means
that the source states no limit.
"""

from dataclasses import dataclass

PLAIN = "16 bits"  # the layout of a checkpoint that is not quantized
GGUF = "gguf"


@dataclass(frozen=True)
class Loader:
    """A runtime, its version, and the pages or files that its columns come from.

    `layouts` maps each layout that it reads to the bits of its weights. `consequence` says what it does with another
    layout. `tables` has those of "head" and "embedding" that may be packed. `architectures` are those that it builds.
    """

    name: str
    version: str
    sources: tuple[str, ...]
    layouts: dict[str, tuple[int, ...]]
    consequence: str
    group_sizes: tuple[int, ...] | None = None
    tables: tuple[str, ...] | None = None
    architectures: frozenset[str] | None = None


VLLM = "vllm"
LLAMA_CPP = Loader(
    "llama.cpp",
    "July 2026",
    ("https://github.com/ggml-org/llama.cpp/tree/master/conversion",),
    {GGUF: (4, 8)},
    "llama.cpp reads .gguf files only",
)
MLX = Loader(
    "mlx",
    "mlx-lm 0.32.2",
    ("https://github.com/ml-explore/mlx-lm: mlx_lm/utils.py, _transform_awq_weights, in version 0.32.2",),
    {PLAIN: (16,), "awq": (4,)},
    "mlx-lm stops at g_idx tensors of gptq, and takes compressed-tensors for groups of 32 without zeros (no error)",
    group_sizes=(32, 64, 128),
    tables=("head",),
)
ORT_ARCHITECTURES = """
    ChatGLMModel Ernie4_5ForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM GraniteForCausalLM
    GraniteMoeHybridForCausalLM HunYuanDenseV1ForCausalLM InternLM2ForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM
    LlamaForCausalLM MistralForCausalLM NemotronForCausalLM OlmoForCausalLM PhiForCausalLM Phi3ForCausalLM
    PhiMoEForCausalLM Phi3SmallForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM SmolLM3ForCausalLM
"""
ORT_GENAI = Loader(
    "ort-genai",
    "onnxruntime-genai 0.18.0",
    (
        "https://github.com/microsoft/onnxruntime-genai: models/builder.py and models/loaders, in version 0.18.0",
        "https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits",
    ),
    {PLAIN: (16,), "awq": (4,), "gptq": (4, 8)},
    "the model builder has no loader for it",
    group_sizes=(16, 32, 64, 128, 256),
    tables=("head",),
    architectures=frozenset(ORT_ARCHITECTURES.split()),
)
EDGE_LLM = Loader(
    "tensorrt-edge-llm",
    "TensorRT Edge-LLM 0.11.1",
    (
        "https://nvidia.github.io/TensorRT-Edge-LLM/0.11.1/user_guide/getting_started/supported-models.html",
        "https://nvidia.github.io/TensorRT-Edge-LLM/0.6.1/user_guide/getting_started/supported-models.html (groups)",
        "https://github.com/NVIDIA-AI-IOT/jetson-ai-lab/pull/424 (compressed-tensors)",
    ),
    {PLAIN: (16,), "awq": (4,), "gptq": (4,)},
    "the exporter refuses it",
    group_sizes=(128,),
)
LOADERS = {loader.name: loader for loader in (LLAMA_CPP, MLX, ORT_GENAI, EDGE_LLM)}
RUNTIMES = (VLLM, *LOADERS)
