"""Estimate the peak memory of a quantization, and choose the schedule that fits into memory.

The estimate adds up the process, its tokenizer, one block in float32 with its codes, and the step that needs most
memory: measuring the start token, a forward pass, solving a stage, or tuning. The page cache is not counted.
"""

import torch

from compress.checkpoint.start import START_LENGTH, START_WINDOWS
from compress.core.config import TUNE_BATCH, QuantizeConfig
from compress.losses.buffers import CHUNK_LOGITS, LOSS_BUFFERS
from compress.model.blocks import HEAD_ROWS, BlockModel
from compress.model.malloc import saved_numbers
from compress.quantize.blocks.lockstep import Schedule, lockstep, replay
from compress.quantize.layout.plan import LayoutPlan
from compress.quantize.methods.error_correction import covariance_rows

ACTIVATION_MEMORY = 1_000_000_000  # bytes: default limit for the activations of paused micro-batches
PROCESS = 430_000_000  # measured bytes of Python, torch and transformers before the job starts
TOKENIZER = 2_000  # measured bytes per vocabulary entry, including the tokens of the calibration text
FREED = 200_000_000  # measured bytes of freed small tensors that the C library does not return
BATCH_TOKENS = 2048  # tokens per micro-batch: enough for fast matrix products, few enough for the CPU's cache


def paused_bytes(blocks: BlockModel, plan: LayoutPlan, tokens: int) -> int:
    """Bytes that paused micro-batches hold for `tokens` tokens.

    They hold the block's inputs, residuals and attention outputs, and the inputs of its widest linear.
    """
    values = tokens * (3 * blocks.model.config.hidden_size + max(inn for _, inn in plan.linears.values()))
    return values * blocks.dtype.itemsize


def choose_schedule(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig, limit: int) -> Schedule:
    """`lockstep` if all paused micro-batches fit into `limit` bytes, else `replay`. Both give the same bits.

    On a GPU, the limit is a quarter of its free memory.
    """
    if blocks.device.type == "cuda":
        limit = torch.cuda.mem_get_info(blocks.device)[0] // 4
    return lockstep if paused_bytes(blocks, plan, config.samples * config.seq_len) <= limit else replay


def estimate_memory(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig, limit: int) -> int:
    """Estimated peak memory of the process in bytes. The estimate is within a third of measured peaks."""
    block = [shape for name, shape in plan.linears.items() if name.startswith(f"{blocks.name(0)}.")]
    weights, largest = sum(out * inn for out, inn in block), max(out * inn for out, inn in block)
    steps = [tune_bytes(blocks, plan, config, weights)] if config.tune else []
    if config.method == "rtn":
        held = 5 * weights + 2 * largest  # the block in float32 with codes, and the linear being read in 16 bits
        steps += [table_bytes(blocks), held + 16 * largest]
    else:
        paused = paused_bytes(blocks, plan, config.samples * config.seq_len)
        work = max(forward_bytes(blocks, plan, config), *(stage_bytes(shape) for shape in stage_shapes(block)))
        kept = paused if paused <= limit else 0
        steps += [2 * table_bytes(blocks) + head_bytes(blocks), 5 * weights + kept + work]
    return PROCESS + TOKENIZER * blocks.model.config.vocab_size + FREED + max(steps)


def table_bytes(blocks: BlockModel) -> int:
    """Bytes of the embedding in 16 bits."""
    return 2 * blocks.model.config.vocab_size * blocks.model.config.hidden_size


def head_bytes(blocks: BlockModel) -> int:
    """Bytes for computing logits with one slice of the head: the slice in float32, and three tensors of its logits."""
    rows = min(HEAD_ROWS, blocks.model.config.vocab_size)
    return 4 * rows * (blocks.model.config.hidden_size + 3 * START_WINDOWS * START_LENGTH)


def stage_shapes(linears: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes of all linears, and of pairs of linears that a stage stacks, such as gate and up.

    Every two linears with the same shape are assumed to be such a pair.
    """
    pairs = [(out, inn) for out, inn in linears if linears.count((out, inn)) > 1]
    return linears + [(2 * out, inn) for out, inn in pairs]


def stage_bytes(shape: tuple[int, int]) -> int:
    """Bytes for solving a stage: its Hessian, and the larger of two phases.

    Factoring holds the Hessian's factor and the weight. Rounding holds the weight and its copies.
    """
    out, inn = shape
    return 4 * inn**2 + max(4 * inn**2 + 10 * out * inn, 18 * out * inn)


def forward_bytes(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig) -> int:
    """Bytes of a forward pass: the linears' outputs for one micro-batch, and the largest statistics."""
    batch = max(BATCH_TOKENS, config.seq_len)  # the windows that measure the start token are as many
    statistics = max(statistics_bytes(shape, config.error_correction > 0) for shape in plan.linears.values())
    return 3 * paused_bytes(blocks, plan, batch) + statistics


def statistics_bytes(shape: tuple[int, int], error_correction: bool) -> int:
    """Bytes of a linear's Hessian and, with error correction, of its error covariance."""
    out, inn = shape
    return 4 * inn * (inn + (covariance_rows(out, inn) if error_correction else 0))


def tune_bytes(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig, weights: int) -> int:
    """Bytes of tuning: embeddings and heads of two models, the multipliers with their Adam state, and the larger phase.

    Phase 1 trains block by block and holds three sets of hidden states of all windows. Phase 2 trains end to end. It
    holds one such set, the loss, and the inputs of every block for one batch. Both hold a block and its gradients.
    """
    width = blocks.model.config.hidden_size
    multipliers = sum(out * inn // plan.schemes[name].group_size for name, (out, inn) in plan.linears.items())
    batch = TUNE_BATCH * config.seq_len
    windows = 4 * (config.samples + config.held_out) * config.seq_len * width
    backward = 12 * weights + 4 * batch * saved_numbers(blocks.model.config.to_dict())
    loss = 4 * LOSS_BUFFERS * CHUNK_LOGITS
    both = 3 * table_bytes(blocks)  # as stored, and the head in float32
    phases = (3 * windows + backward, windows + 4 * batch * width * (len(blocks) + 1) + max(loss, backward))
    return 2 * both + 24 * multipliers + max(phases)
