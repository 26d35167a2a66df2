"""Architecture as a table: the linears that share an input, the module that feeds them, the linears that vLLM fuses.

A new family is one row of FAMILIES. No other file branches on the model type.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Feeder:
    """The module whose outputs some linears read. Dividing its outputs undoes a scale on the linears' input channels.

    kind "norm":  a norm, whose weight is divided; `offset` is the constant that it adds to its weight (1 in Gemma)
    kind "rows":  a linear, whose last in_features rows are divided (up_proj before down_proj)
    kind "heads": a linear, whose value rows are divided; query heads of one value head share scales (before o_proj)
    """

    module: str
    kind: str
    offset: float = 0.0


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
class Family:
    """Hugging Face model types, the stages of their blocks, and the linears that vLLM fuses to one matrix."""

    model_types: tuple[str, ...]
    stages: tuple[Stage, ...]
    fused: dict[str, tuple[str, ...]]
    float16: bool = True  # False: activations overflow float16, and vLLM refuses it


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
ATTENTION, MLP = "input_layernorm", "post_attention_layernorm"  # the norms at the input of attention and MLP
OUT = Stage(("self_attn.o_proj",), Feeder("self_attn.v_proj", "heads"))
DOWN = Stage(("mlp.down_proj",), Feeder("mlp.up_proj", "rows"))
FUSED = {"self_attn.qkv_proj": QKV, "mlp.gate_up_proj": GATE_UP}
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

FAMILIES = (
    Family(("llama", "qwen2", "qwen3", "mistral", "smollm3", "ministral"), LLAMA, FUSED),
    Family(("granite",), GRANITE, FUSED),
    Family(("gemma2", "gemma3_text"), GEMMA, FUSED, float16=False),
    Family(("phi3",), PHI3, {}),
)


def find_family(model_type: str) -> Family | None:
    """The row of a model type. None for an unknown type; its stages are then traced, and no scale is folded."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
