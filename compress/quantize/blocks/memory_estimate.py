"""How much memory a job will take at its peak, and which way through the windows fits.

Counted are the process itself, its tokenizer, one block in float32 with its codes, and the largest of the steps that
follow one another: the start token's measure, a forward of the windows, the solution of a stage, and tuning. Whatever
is read from and written to files lies in the page cache, which is not the process's.
"""

from collections.abc import Callable

import psutil

from compress.checkpoint.load import START_LENGTH, START_WINDOWS
from compress.core.config import QuantizeConfig
from compress.losses import CHUNK_LOGITS, LOSS_BUFFERS
from compress.model.blocks import HEAD_ROWS, BlockModel
from compress.model.malloc import saved_numbers
from compress.quantize.blocks.lockstep import lockstep, replay
from compress.quantize.layout.plan import LayoutPlan
from compress.quantize.methods.error_correction import covariance_rows
from compress.quantize.tune.model import TuneSettings

ACTIVATION_MEMORY = 1_000_000_000  # bytes; what lockstep may park unless told otherwise
TOKENIZER = 2_000  # bytes per entry of the vocabulary, the calibration text in tokens included: measured
FREED = 200_000_000  # bytes of small tensors that are gone and that the C library keeps: measured
BATCH_TOKENS = 2048  # per micro-batch: large enough for the matrix products, small enough for the cache


def resident() -> int:
    """Bytes of memory that this process has now."""
    return psutil.Process().memory_info().rss


def parked_bytes(blocks: BlockModel, plan: LayoutPlan, tokens: int) -> int:
    """What `lockstep` keeps for `tokens`: inputs, residuals and attention outputs, and the widest linear's inputs."""
    return 4 * tokens * (3 * blocks.model.config.hidden_size + max(inn for _, inn in plan.linears.values()))


def choose_schedule(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig, limit: int) -> Callable[..., None]:
    """`lockstep` where all windows may be parked within `limit` bytes, else `replay`, which gives the same bits."""
    return lockstep if parked_bytes(blocks, plan, config.samples * config.seq_len) <= limit else replay


def estimate_memory(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig, limit: int) -> int:
    """Bytes of the process at its peak, within a third of what is measured."""
    block = [shape for name, shape in plan.linears.items() if name.startswith(f"{blocks.name(0)}.")]
    weights, largest = sum(out * inn for out, inn in block), max(out * inn for out, inn in block)
    steps = [tune_bytes(blocks, plan, config, weights)] if config.tune else []
    if config.method == "rtn":
        held = 5 * weights + 2 * largest  # float32 and codes; the source's 16 bits of the linear that is being read
        steps += [table_bytes(blocks), held + 16 * largest]
    else:
        parked = parked_bytes(blocks, plan, config.samples * config.seq_len)
        work = max(forward_bytes(blocks, plan, config), *(stage_bytes(shape) for shape in stages(block)))
        kept = parked if parked <= limit else 0
        steps += [2 * table_bytes(blocks) + head_bytes(blocks), 5 * weights + kept + work]
    return resident() + TOKENIZER * blocks.model.config.vocab_size + FREED + max(steps)


def table_bytes(blocks: BlockModel) -> int:
    """The embedding as stored."""
    return 2 * blocks.model.config.vocab_size * blocks.model.config.hidden_size


def head_bytes(blocks: BlockModel) -> int:
    """A slice of the head in float32, and three tensors of its logits."""
    rows = min(HEAD_ROWS, blocks.model.config.vocab_size)
    return 4 * rows * (blocks.model.config.hidden_size + 3 * START_WINDOWS * START_LENGTH)


def stages(linears: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The largest stages there can be: linears of a like input, stacked in pairs as gate and up are."""
    pairs = [(out, inn) for out, inn in linears if linears.count((out, inn)) > 1]
    return linears + [(2 * out, inn) for out, inn in pairs]


def stage_bytes(shape: tuple[int, int]) -> int:
    """The Hessian and its factor, or the stacked weight with the four copies that rounding or judging it takes."""
    out, inn = shape
    return 4 * inn**2 + max(4 * inn**2 + 10 * out * inn, 18 * out * inn)


def forward_bytes(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig) -> int:
    """What the linears of one micro-batch make, and the widest statistics."""
    batch = min(config.samples * config.seq_len, max(BATCH_TOKENS, config.seq_len))
    statistics = max(statistics_bytes(shape, config.error_correction > 0) for shape in plan.linears.values())
    return 3 * parked_bytes(blocks, plan, batch) + statistics


def statistics_bytes(shape: tuple[int, int], mismatch: bool) -> int:
    """The Hessian of a linear, and the mismatch with its few outputs or with all of its inputs."""
    out, inn = shape
    return 4 * inn * (inn + (covariance_rows(out, inn) if mismatch else 0))


def tune_bytes(blocks: BlockModel, plan: LayoutPlan, config: QuantizeConfig, weights: int) -> int:
    """Both models' ends, the multipliers with gradient, moments and two copies, then the larger of the two phases:
    three sets of states of all windows, or one, the loss, and a state per block; a block with its gradients in each."""
    width, settings = blocks.model.config.hidden_size, TuneSettings()
    multipliers = sum(out * inn // plan.schemes[name].group_size for name, (out, inn) in plan.linears.items())
    batch = settings.batch * config.seq_len
    windows = 4 * (config.samples + config.held_out) * config.seq_len * width
    backward = 12 * weights + 4 * batch * saved_numbers(blocks.model.config.to_dict())
    loss = 4 * LOSS_BUFFERS * CHUNK_LOGITS
    both = 3 * table_bytes(blocks)  # as stored, and the head in float32
    phases = (3 * windows + backward, windows + 4 * batch * width * (len(blocks) + 1) + max(loss, backward))
    return 2 * both + 24 * multipliers + max(phases)
