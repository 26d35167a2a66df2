"""Architecture as a table: the linears that share an input, the module that feeds them, the linears that vLLM fuses.

A new family is one row of FAMILIES. No other file branches on the model type.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Feeder:
    """The module whose outputs some linears read. Dividing its outputs undoes a scale on the linears' input channels.

    kind "norm":  a norm, whose weight is divided; `offset` is the constant that it adds to its weight (1 in Gemma)
    kind "rows":  a linear, whose last in_features rows are divided (up_proj before down_proj)
    kind "heads": a linear, whose value rows are divided; query heads of one value head share scales (before o_proj)

    A model that has the parameter `unless` adds something after the feeder, so no scale can be folded into it.
    """

    module: str
    kind: str
    offset: float = 0.0
    unless: str | None = None


@dataclass(frozen=True)
class Stage:
    """Linears of a block that share one input, in the order they run, and the module that feeds them.

    `feeder` is None if no module can absorb a scale. If the output of these linears is added to the residual stream,
    `residual` names the norm that reads this stream. It is None in families that change the output before the addition.
    """

    linears: tuple[str, ...]
    feeder: Feeder | None = None
    residual: str | None = None


@dataclass(frozen=True)
class ExpertNames:
    """The experts of a block: their module, and the linears of one expert. `inputs` are gate and up, or up alone.

    The number of an expert comes between the module and the linear. `stacked` maps tensors with all experts of a block
    in one 3-D tensor, as files of this family have them, to the linears inside, whose rows follow one another.
    """

    module: str
    inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def linear(self, expert: int, name: str) -> str:
        """The path of a linear of one expert."""
        return f"{self.module}.{expert}.{name}"

    def stages(self, expert: int) -> tuple[Stage, Stage]:
        """The two stages of one expert. The last of `inputs` feeds its down projection, if that is not activated."""
        inputs = tuple(self.linear(expert, name) for name in self.inputs)
        feeder = Feeder(inputs[-1], "rows") if len(inputs) > 1 else None
        return Stage(inputs), Stage((self.linear(expert, self.down),), feeder)


@dataclass(frozen=True)
class Family:
    """Hugging Face model types, the stages of their blocks, and the linears that vLLM fuses to one matrix.

    Blocks of different kinds are in one family: `stages_in` returns the stages that a block has. Without `stages`, they
    are traced, and no scale is folded. `skipped` maps linears that stay in 16 bits to the reason. `renamed` are pairs:
    a part of tensor names in files, and the same part in the model of transformers.
    """

    model_types: tuple[str, ...]
    stages: tuple[Stage, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    float16: bool = True  # False: activations overflow float16, and vLLM refuses it
    experts: ExpertNames | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()

    def stages_in(self, modules: Collection[str]) -> tuple[Stage, ...]:
        """The stages of a block with these modules, which are paths inside the block.

        With experts, no stage has a `residual`: their weighted sum reaches the stream, not the output of a stage.
        """
        present = [stage for stage in self.stages if any(name in modules for name in stage.linears)]
        stages = [fitted(stage, modules) for stage in present]
        experts = range(self.count_experts(modules))
        if not self.experts or not experts:
            return tuple(stages)
        parts = [stage for expert in experts for stage in self.experts.stages(expert)]
        return tuple(replace(stage, residual=None) for stage in (*stages, *parts))

    def count_experts(self, modules: Collection[str]) -> int:
        """The number of experts in a block with these modules."""
        if self.experts is None:
            return 0
        prefix, suffix = f"{self.experts.module}.", f".{self.experts.down}"
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in modules)

    def experts_in(self, modules: Collection[str]) -> str | None:
        """The path of the experts in a block with these modules. None without experts."""
        return self.experts.module if self.experts and self.count_experts(modules) else None

    def skips(self, path: str) -> str | None:
        """The reason why a linear stays in 16 bits. None if it is quantized."""
        return next((reason for name, reason in self.skipped.items() if f".{path}".endswith(f".{name}")), None)

    def fused_in(self, modules: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(fused layer of vLLM, its linears) in a block with these modules."""
        for name, shards in self.fused.items():
            if all(shard in modules for shard in shards):
                yield name, shards


def fitted(stage: Stage, modules: Collection[str]) -> Stage:
    """The stage with the linears that a block has, and without a feeder that it lacks or that cannot absorb a scale."""
    feeder = stage.feeder
    if feeder and (feeder.module not in modules or (feeder.unless is not None and feeder.unless in modules)):
        feeder = None
    return replace(stage, linears=tuple(name for name in stage.linears if name in modules), feeder=feeder)


def gated(path: str, norm: Feeder | None, *, residual: str | None = None) -> tuple[Stage, Stage]:
    """The stages of a gated MLP at `path`, whose inputs come from `norm`."""
    down = Stage((f"{path}.down_proj",), Feeder(f"{path}.up_proj", "rows"), residual)
    return Stage((f"{path}.gate_proj", f"{path}.up_proj"), norm), down


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
ATTENTION, MLP = "input_layernorm", "post_attention_layernorm"  # the norms at the input of attention and MLP
OUT = Stage(("self_attn.o_proj",), Feeder("self_attn.v_proj", "heads"))
DOWN = Stage(("mlp.down_proj",), Feeder("mlp.up_proj", "rows"))
FUSED_QKV: dict[str, tuple[str, ...]] = {"self_attn.qkv_proj": QKV}
FUSED = FUSED_QKV | {"mlp.gate_up_proj": GATE_UP}
LLAMA = (
    Stage(QKV, Feeder(ATTENTION, "norm")),
    replace(OUT, residual=ATTENTION),
    Stage(GATE_UP, Feeder(MLP, "norm")),
    replace(DOWN, residual=MLP),
)
GRANITE = tuple(replace(stage, residual=None) for stage in LLAMA)  # a factor scales the output before the addition
GEMMA = (
    Stage(QKV, Feeder(ATTENTION, "norm", offset=1.0)),
    OUT,
    Stage(GATE_UP, Feeder("pre_feedforward_layernorm", "norm", offset=1.0)),
    DOWN,
)
PHI3 = (
    Stage(("self_attn.qkv_proj",), Feeder(ATTENTION, "norm")),
    Stage(("self_attn.o_proj",), Feeder("self_attn.qkv_proj", "heads"), ATTENTION),
    Stage(("mlp.gate_up_proj",), Feeder(MLP, "norm")),
    Stage(("mlp.down_proj",), Feeder("mlp.gate_up_proj", "rows"), MLP),
)

# Gated delta-net: the norm before it also feeds b and a, and the norm before out_proj has one weight for all heads.
TINY = "its outputs are a single number per head, and the state of the block multiplies their errors"
ROUTER = "it chooses experts or scales their output, and a rounding error changes the choice"
DELTA = (
    Stage(("linear_attn.in_proj_qkv", "linear_attn.in_proj_z")),
    Stage(("linear_attn.in_proj_qkvz",)),
    Stage(("linear_attn.out_proj",), residual=ATTENTION),
)
DELTA_FUSED: dict[str, tuple[str, ...]] = {
    "linear_attn.in_proj_qkvz": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    "linear_attn.in_proj_ba": ("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
}
DELTA_SKIPPED = {f"linear_attn.in_proj_{name}": TINY for name in ("b", "a", "ba")}
QWEN35_ATTENTION = (Stage(QKV, Feeder(ATTENTION, "norm", offset=1.0)), replace(OUT, residual=ATTENTION))
QWEN35 = (*DELTA, *QWEN35_ATTENTION, *gated("mlp", Feeder(MLP, "norm", offset=1.0), residual=MLP))

# A mixture of experts reads the same norm as its router, so that norm absorbs no scale.
ATTENTION_STAGES = (Stage(QKV, Feeder(ATTENTION, "norm")), OUT)
SHARED = gated("mlp.shared_expert", None)
SHARED_SKIPPED = {"mlp.shared_expert_gate": ROUTER}
EXPERTS, MIXTRAL_NAMES = ExpertNames("mlp.experts"), ("w1", "w3")
DENSE = gated("mlp", Feeder(MLP, "norm"))  # of families with dense blocks between blocks of experts

# Multi-head latent attention. vLLM multiplies parts of kv_b_proj into other matrices after unpacking it.
LATENT = (
    Stage(("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"), Feeder(ATTENTION, "norm")),
    Stage(("self_attn.q_b_proj",), Feeder("self_attn.q_a_layernorm", "norm")),
    Stage(("self_attn.kv_b_proj",), Feeder("self_attn.kv_a_layernorm", "norm")),
    Stage(("self_attn.o_proj",)),
)
LATENT_FUSED = {"self_attn.fused_qkv_a_proj": ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")}

# LFM2: the convolution multiplies three parts of in_proj, so the last one can be scaled if nothing is added to it.
LFM2_ATTENTION = (
    Stage(QKV, Feeder("operator_norm", "norm")),
    Stage(("self_attn.out_proj",), Feeder("self_attn.v_proj", "heads")),
    Stage(("conv.in_proj",), Feeder("operator_norm", "norm")),
    Stage(("conv.out_proj",), Feeder("conv.in_proj", "rows", unless="conv.conv")),
)
LFM2_MLP = (
    Stage(("feed_forward.w1", "feed_forward.w3"), Feeder("ffn_norm", "norm")),
    Stage(("feed_forward.w2",), Feeder("feed_forward.w3", "rows")),
)
LFM2_FUSED = {**FUSED_QKV, "feed_forward.w13": ("feed_forward.w1", "feed_forward.w3")}

# Mamba 2: the gated norm before out_proj has one weight per channel, so it absorbs a scale.
MAMBA_OUT = Stage(("mamba.out_proj",), Feeder("mamba.norm", "norm"))
GRANITE_HYBRID = (
    *ATTENTION_STAGES,
    Stage(("mamba.in_proj",), Feeder(ATTENTION, "norm")),
    MAMBA_OUT,
    Stage(("shared_mlp.input_linear",)),
    Stage(("shared_mlp.output_linear",), Feeder("shared_mlp.input_linear", "rows")),
)
FALCON_H1 = (
    Stage(("mamba.in_proj",)),  # attention reads the same norm
    MAMBA_OUT,
    Stage(QKV),
    OUT,
    *gated("feed_forward", Feeder("pre_ff_layernorm", "norm")),
)
NEMOTRON_H = (
    Stage(("mixer.in_proj",), Feeder("norm", "norm")),
    Stage(("mixer.out_proj",), Feeder("mixer.norm", "norm")),
    Stage(("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"), Feeder("norm", "norm")),
    Stage(("mixer.o_proj",), Feeder("mixer.v_proj", "heads")),
    Stage(("mixer.up_proj",), Feeder("norm", "norm")),
    Stage(("mixer.down_proj",)),
    Stage(("mixer.shared_experts.up_proj",)),
    Stage(("mixer.shared_experts.down_proj",)),
)
BLOCK_SPARSE = ExpertNames("mlp.experts", MIXTRAL_NAMES, "w2")
GRANITE_EXPERTS = ExpertNames(
    "block_sparse_moe.experts",
    MIXTRAL_NAMES,
    "w2",
    {"block_sparse_moe.input_linear.weight": MIXTRAL_NAMES, "block_sparse_moe.output_linear.weight": ("w2",)},
)
GRANITE_ROUTER = (("block_sparse_moe.router.layer.", "block_sparse_moe.router."),)

FAMILIES = (
    Family(("llama", "qwen2", "qwen3", "mistral", "smollm3", "ministral"), LLAMA, FUSED),
    Family(("ministral3", "seed_oss", "cwm", "ernie4_5", "hunyuan_v1_dense"), LLAMA, FUSED),
    Family(("granite",), GRANITE, FUSED),
    Family(("gemma2", "gemma3_text"), GEMMA, FUSED, float16=False),
    Family(("phi3",), PHI3, {}),
    # Traced: layernorms with a bias, parallel blocks, or norms after the linears.
    Family(("gemma", "arcee", "olmo", "olmo2", "olmo3", "cohere", "cohere2", "exaone4", "vaultgemma"), (), FUSED),
    Family(("starcoder2", "stablelm", "nemotron", "apertus", "jais2"), (), FUSED),
    Family(("glm",), (), FUSED_QKV),
    Family(("glm4",), (), FUSED_QKV, float16=False),
    Family(("opt",), (), FUSED_QKV),
    # Hybrids
    Family(("qwen3_5_text",), QWEN35, FUSED | DELTA_FUSED, skipped=DELTA_SKIPPED),
    Family(("lfm2",), (*LFM2_ATTENTION, *LFM2_MLP), LFM2_FUSED),
    Family(("granitemoehybrid",), GRANITE_HYBRID, FUSED_QKV, experts=GRANITE_EXPERTS, renamed=GRANITE_ROUTER),
    Family(
        ("falcon_h1",),
        FALCON_H1,
        FUSED_QKV | {"feed_forward.gate_up_proj": ("feed_forward.gate_proj", "feed_forward.up_proj")},
    ),
    Family(
        ("nemotron_h",),
        NEMOTRON_H,
        {"mixer.qkv_proj": ("mixer.q_proj", "mixer.k_proj", "mixer.v_proj")},
        experts=ExpertNames("mixer.experts", ("up_proj",)),
        renamed=(("backbone.", "model."),),
    ),
    # Experts
    Family(("qwen3_moe", "mellum"), (*ATTENTION_STAGES, *DENSE), FUSED, experts=EXPERTS),
    Family(("olmoe",), ATTENTION_STAGES, FUSED_QKV, experts=EXPERTS),
    Family(
        ("qwen2_moe",),
        (*ATTENTION_STAGES, *SHARED, *DENSE),
        FUSED | {"mlp.shared_expert.gate_up_proj": SHARED[0].linears},
        experts=EXPERTS,
        skipped=SHARED_SKIPPED,
    ),
    Family(
        ("qwen3_next", "qwen3_5_moe_text"),
        (*QWEN35, *SHARED),
        FUSED | DELTA_FUSED | {"mlp.shared_expert.gate_up_proj": SHARED[0].linears},
        experts=replace(
            EXPERTS,
            stacked={"mlp.experts.gate_up_proj": EXPERTS.inputs, "mlp.experts.down_proj": (EXPERTS.down,)},
        ),
        skipped=DELTA_SKIPPED | SHARED_SKIPPED,
    ),
    Family(
        ("mixtral",),
        ATTENTION_STAGES,
        FUSED_QKV,
        experts=BLOCK_SPARSE,
        renamed=((".block_sparse_moe.", ".mlp."),),
    ),
    Family(("granitemoe",), ATTENTION_STAGES, FUSED_QKV, experts=GRANITE_EXPERTS, renamed=GRANITE_ROUTER),
    Family(
        ("lfm2_moe",),
        (*LFM2_ATTENTION, *LFM2_MLP),
        LFM2_FUSED,
        experts=ExpertNames("feed_forward.experts", MIXTRAL_NAMES, "w2"),
    ),
    Family(
        ("deepseek_v2", "deepseek_v3"),
        (*LATENT, *DENSE, *gated("mlp.shared_experts", None)),
        {"mlp.gate_up_proj": GATE_UP, **LATENT_FUSED},
        experts=EXPERTS,
    ),
    Family(
        ("ernie4_5_moe",),
        (*ATTENTION_STAGES, *DENSE, *gated("mlp.shared_experts", None)),
        FUSED | {"mlp.shared_experts.gate_up_proj": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")},
        experts=EXPERTS,
        renamed=(("mlp.moe_statics.", "mlp.gate.moe_statics."),),
    ),
)
FUSED_NAMES = {name: shards for family in FAMILIES for name, shards in family.fused.items()}

ROW_PARALLEL = ("o_proj", "out_proj", "down_proj", "output_linear", "w2", "fc2", "c_proj")

REFUSED = {  # model types that cannot be quantized -> the reason and what to do
    "gpt2": "its linears are stored transposed (Conv1D), and no 4-bit format holds them; use a llama-like model",
    "gpt_bigcode": "its blocks take their arguments by position; use starcoder2",
    "gpt_neox": "its head has a name (embed_out) that the 4-bit formats do not know; use a llama-like model",
    "bloom": "its positions are added inside the attention (ALiBi); use a llama-like model",
    "falcon": "its positions may be added inside the attention (ALiBi); use a llama-like model",
    "phi": "its head has a bias, which the 4-bit formats do not hold; use phi3",
    "falcon_h1": "its Mamba needs a mask that blocks do not get one by one yet; use granitemoehybrid",
    "gpt_oss": "its experts are published in MXFP4, 4 bits already; serve it as it is",
    "gemma4_text": "its blocks read per-layer embeddings and keys of earlier blocks; use gemma3",
    "gemma3n_text": "its blocks read per-layer embeddings and keys of earlier blocks; use gemma3",
}


def is_row_parallel(linear: str) -> bool:
    """Whether tensor parallelism cuts a linear along its inputs, and not along its outputs."""
    return linear.rpartition(".")[2] in ROW_PARALLEL


def find_family(model_type: str) -> Family | None:
    """The row of a model type. None for an unknown type; its stages are then traced, and no scale is folded."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
