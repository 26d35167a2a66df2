"""What a quantization needs on a GPU: bytes by part, and the least minutes. Reads no weights and imports no torch.

    forward     2 · tokens · out · in of every linear, for the quantized and, with error correction, the 16-bit model
    statistics  tokens · in² for each stage: half of 2 · tokens · in², because x xᵀ is symmetric
    rounding    GPTQ's updates, out · in² in float32, and SWEEPS sweeps of 2 · out · in² in 16 bits
    factor      2/3 · in³ in float32 for each Hessian

The minutes are a lower bound. Launches, waits, the disk and the output's checks come on top.
"""

from compress.core.cards import Card
from compress.core.config import QuantizeConfig
from compress.core.report import Row
from compress.core.units import format_bytes
from compress.quantize.layout.plan import LayoutPlan

HALF, FLOAT = 2, 4  # bytes
SWEEPS = 3  # of refine.py
SOLVING = (16, 12)  # bytes per weight and per number of the Hessian while a stage is solved: copies in float32
SEPARATE = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}  # linears with one input, if they are not fused


def stage_shapes(plan: LayoutPlan) -> list[tuple[int, int]]:
    """The stacked shapes (out, in) of all stages of the first block: linears that share an input are one stage."""
    block: dict[str, list[tuple[int, int]]] = {}
    prefix = first_block(plan)
    for path, shape in plan.linears.items():
        parent, _, name = path.rpartition(".")
        stage = next((min(names) for names in SEPARATE if name in names), name)
        if path.startswith(prefix):
            block.setdefault(f"{parent}.{stage}", []).append(shape)
    return [(sum(out for out, _ in shapes), shapes[0][1]) for shapes in block.values()]


def first_block(plan: LayoutPlan) -> str:
    """The path of the first block with its final dot, such as "model.layers.0."."""
    head, dot, _ = next(iter(plan.linears)).partition(".0.")
    return f"{head}{dot}"


def gpu_parts(plan: LayoutPlan, config: QuantizeConfig) -> dict[str, int]:
    """The bytes on a GPU by part, at the job's peak.

    Hidden states can also stay in files, so they are a part of their own: "states".
    """
    stages = stage_shapes(plan)
    width = stages[0][1]  # the first linear of a block reads the hidden states
    weights, tokens = sum(out * inn for out, inn in stages), config.samples * config.seq_len
    parts = {"block": HALF * weights, "codes": weights, "states": 0, "solving": 0}
    if config.method != "rtn":
        widest = max(inn for _, inn in stages)
        copies = 2 if config.error_correction else 1
        parts["states"] = HALF * tokens * ((copies - 1) * (3 * width + widest) + 2 * copies * width)
        parts["solving"] = max(SOLVING[0] * out * inn + SOLVING[1] * inn * inn for out, inn in stages)
    return parts


def gpu_flops(plan: LayoutPlan, config: QuantizeConfig) -> tuple[float, float]:
    """The operations of the whole job: in 16 bits, and in float32."""
    if config.method == "rtn":
        return 0.0, 0.0
    stages, tokens = stage_shapes(plan), config.samples * config.seq_len
    blocks = len(plan.linears) / sum(path.startswith(first_block(plan)) for path in plan.linears)
    models = 2 if config.error_correction else 1
    half = sum(2 * models * tokens * out * inn + tokens * inn**2 + 2 * SWEEPS * out * inn**2 for out, inn in stages)
    whole = sum(out * inn**2 + 2 * inn**3 / 3 for out, inn in stages)
    return blocks * half, blocks * whole


def gpu_row(plan: LayoutPlan, config: QuantizeConfig, card: Card) -> Row:
    """The report row of a job on a card: memory by part, whether it fits, what to change if not, and least minutes."""
    parts = gpu_parts(plan, config)
    needed = sum(parts.values()) - parts["states"]
    text = ", ".join(f"{name} {format_bytes(size, short=False)}" for name, size in parts.items())
    half, whole = gpu_flops(plan, config)
    fits = needed <= card.memory
    streams = fits and needed + parts["states"] > card.memory
    return {
        "hardware": card.title,
        "gpu_memory_bytes": needed,
        "gpu_memory": f"{text}{'; states stay in files' if streams else ''}",
        "fits": fits,
        "cure": None if fits else "use a GPU with more memory, or --device cpu",
        "seconds_at_least": round(card.seconds(half, whole, 0.0), 1),
    }
