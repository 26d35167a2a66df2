"""The rows that commands print with --json, store in a history and show in reports: one TypedDict per kind of row.

The `Annotated` text of a key is its meaning and unit. The JSON reference page is generated from these texts.
"""

from typing import Annotated, Any, NotRequired, TypedDict


class PositionRow(TypedDict):
    """Drift of the tokens at positions from `start` up to `end`, without `end`."""

    start: Annotated[int, "first position of the range"]
    end: Annotated[int, "position after the range"]
    tokens: Annotated[int, "number of scored tokens"]
    reference_nll: Annotated[float, "mean negative log-likelihood of the reference, nats per token"]
    nll: Annotated[float, "mean negative log-likelihood of the candidate, nats per token"]
    kl: Annotated[float, "mean KL(reference ‖ candidate), nats per token"]


class DocumentRow(TypedDict):
    """Drift in one document of the evaluation text."""

    document: Annotated[str, "name of the document"]
    tokens: Annotated[int, "number of scored tokens"]
    reference_nll: Annotated[float, "mean negative log-likelihood of the reference, nats per token"]
    nll: Annotated[float, "mean negative log-likelihood of the candidate, nats per token"]
    kl: Annotated[float, "mean KL(reference ‖ candidate), nats per token"]


class GuessRow(TypedDict):
    """One likely next token of a model."""

    token: Annotated[str, "text of the token"]
    probability: Annotated[float, "probability, 0 to 1"]


class WorstRow(TypedDict):
    """One of the tokens with the largest KL."""

    kl: Annotated[float, "KL(reference ‖ candidate) at this token, nats"]
    window: Annotated[int, "index of the window"]
    position: Annotated[int, "position of the token in its window"]
    document: Annotated[str | None, "name of the document; null if unnamed"]
    before: Annotated[str, "text before the token"]
    token: Annotated[str, "text of the token"]
    reference_nll: Annotated[float, "negative log-likelihood of the reference, nats"]
    nll: Annotated[float, "negative log-likelihood of the candidate, nats"]
    reference: Annotated[list[GuessRow], "most likely tokens of the reference, best first"]
    candidate: Annotated[list[GuessRow], "most likely tokens of the candidate, best first"]


class LinearRow(TypedDict):
    """One linear of a block that `--locate` ran alone on the reference's inputs."""

    name: Annotated[str, "name inside the block, such as self_attn.q_proj"]
    error: Annotated[float, "squared output error over squared output, all tokens"]
    gain: Annotated[float, "projection of the candidate's output on the reference's, median over tokens; 1 is exact"]
    recorded: Annotated[float | None, "error in the candidate's record; null without a record"]
    score: NotRequired[Annotated[float, "distance of the gain from the gains of other blocks, in robust deviations"]]


class BlockRow(TypedDict):
    """One block that `--locate` ran alone on the reference's inputs."""

    block: Annotated[int, "index of the block"]
    name: Annotated[str, "path of the block in the model"]
    error: Annotated[float, "squared error over squared update, median over tokens"]
    gain: Annotated[float, "projection of the candidate's update on the reference's, median over tokens; 1 is exact"]
    excess: Annotated[float | None, "median over the linears of measured error / recorded error; null without a record"]
    linears: Annotated[list[LinearRow], "linears of the block"]
    linear: NotRequired[Annotated[str | None, "the outlier, if it is a single linear; null otherwise"]]
    score: NotRequired[Annotated[float, "largest robust deviation of the block and its linears"]]
    outlier: NotRequired[Annotated[bool, "true if the score exceeds the threshold"]]


class CheckpointPart(TypedDict):
    """The part of a `CompareRow` that describes the checkpoint."""

    name: Annotated[str, "name of the checkpoint"]
    role: Annotated[str, "reference or candidate; teacher with --teacher"]
    format: Annotated[str, "awq, gptq, compressed-tensors, or the dtype of a 16-bit checkpoint"]
    method: Annotated[str | None, "quantization method, or command that wrote the checkpoint; null if unrecorded"]
    bytes: Annotated[int, "size of all safetensors files, bytes"]
    parameters: Annotated[int, "parameters of the model, tied weights counted once"]
    bits_per_weight: Annotated[float, "bits on disk per weight of the quantized linears, scales and zeros included"]
    bits_per_parameter: Annotated[float, "bits on disk per parameter of the whole model"]
    digest: Annotated[str, "sha256 of the checkpoint"]
    small_files_digest: Annotated[str, "sha256 of tokenizer, chat template and generation_config.json"]
    record: Annotated[dict[str, Any], "contents of the checkpoint's qcompress.json"]


class DriftPart(TypedDict):
    """The part of a `CompareRow` with the means over all scored tokens."""

    perplexity: Annotated[float, "perplexity on the evaluation text"]
    perplexity_se: Annotated[float | None, "standard error of perplexity; null for one window"]
    reference_perplexity: Annotated[float, "the reference's perplexity on the same tokens"]
    reference_perplexity_se: Annotated[float | None, "standard error of reference_perplexity; null for one window"]
    perplexity_ratio: Annotated[float, "perplexity over the reference's perplexity"]
    perplexity_ratio_se: Annotated[float | None, "standard error of perplexity_ratio; null for one window"]
    perplexity_ratio_low: Annotated[float | None, "lower end of the 95 % interval of perplexity_ratio"]
    perplexity_ratio_high: Annotated[float | None, "upper end of the 95 % interval of perplexity_ratio"]
    perplexity_difference: Annotated[float, "perplexity minus the reference's perplexity"]
    perplexity_difference_low: Annotated[float | None, "lower end of the 95 % interval of perplexity_difference"]
    perplexity_difference_high: Annotated[float | None, "upper end of the 95 % interval of perplexity_difference"]
    kl: Annotated[float, "mean KL(reference ‖ candidate), nats per token"]
    kl_se: Annotated[float | None, "standard error of kl; null for one window"]
    kl_low: Annotated[float | None, "lower end of the 95 % interval of kl"]
    kl_high: Annotated[float | None, "upper end of the 95 % interval of kl"]
    kl_median: Annotated[float, "median KL of a token, nats"]
    kl_p95: Annotated[float, "95th percentile of KL, nats"]
    kl_p99: Annotated[float, "99th percentile of KL, nats"]
    top1: Annotated[float, "share of positions where both models have the same most likely token, 0 to 1"]
    top1_se: Annotated[float | None, "standard error of top1; null for one window"]
    top5: Annotated[float, "share of positions where the candidate's top 5 has the reference's top token, 0 to 1"]
    top5_se: Annotated[float | None, "standard error of top5; null for one window"]


class BreakdownPart(TypedDict):
    """The part of a `CompareRow` that locates drift in the text."""

    positions: Annotated[list[PositionRow], "drift by position in the window"]
    documents: Annotated[list[DocumentRow], "documents with the largest KL, largest first"]
    worst: Annotated[list[WorstRow], "tokens with the largest KL, largest first"]


class WindowsPart(TypedDict):
    """The part of a `CompareRow` that describes the evaluation windows."""

    text: Annotated[str | None, "name of the evaluation text"]
    text_digest: Annotated[str | None, "sha256 of the evaluation text"]
    n_samples: Annotated[int, "number of windows"]
    seq_len: Annotated[int, "tokens per window"]
    tokens: Annotated[int, "number of scored tokens"]
    start_token: Annotated[int | None, "id of the token that begins every window; null without such a token"]
    seed: Annotated[int | None, "random seed for the choice of windows"]
    windows_digest: Annotated[str | None, "sha256 of the token ids"]
    vocabulary: Annotated[int, "number of tokens that all models share"]


class TeacherPart(TypedDict, total=False):
    """The part of a `CompareRow` that exists with `--teacher`: the drift from the model that was distilled."""

    teacher_kl: Annotated[float, "mean KL(teacher ‖ checkpoint), nats per token"]
    teacher_kl_se: Annotated[float | None, "standard error of teacher_kl; null for one window"]
    teacher_kl_low: Annotated[float | None, "lower end of the 95 % interval of teacher_kl"]
    teacher_kl_high: Annotated[float | None, "upper end of the 95 % interval of teacher_kl"]
    teacher_top1: Annotated[float, "share of positions with the same most likely token as the teacher, 0 to 1"]
    teacher_top1_se: Annotated[float | None, "standard error of teacher_top1; null for one window"]
    teacher_perplexity_ratio: Annotated[float, "perplexity over the teacher's perplexity"]
    teacher_perplexity_ratio_se: Annotated[float | None, "standard error of teacher_perplexity_ratio"]


class CompareRow(CheckpointPart, DriftPart, BreakdownPart, WindowsPart, TeacherPart):
    """One checkpoint of `compare` or `verify`: its size, and its drift from the reference."""

    blocks: NotRequired[Annotated[list[BlockRow], "with --locate: one row per block"]]
    passed: NotRequired[Annotated[bool, "true if every limit holds; absent without a limit"]]
    reason: NotRequired[Annotated[str | None, "broken limits in words; null if every limit holds"]]
    cure: NotRequired[Annotated[str, "with a broken limit: what to try"]]
    unsure: NotRequired[Annotated[str, "kinds of task with too few items to tell whether min_retention holds"]]


class VerdictRow(TypedDict):
    """The verdict on a candidate: it passes all limits, or it breaks some of them."""

    name: Annotated[str, "name of the checkpoint"]
    passed: Annotated[bool, "true if every limit holds"]
    reason: Annotated[str | None, "broken limits in words; null if every limit holds"]
    cure: NotRequired[Annotated[str, "with a broken limit: what to try"]]
    unsure: NotRequired[Annotated[str, "kinds of task with too few items to tell whether min_retention holds"]]
    check_errors: NotRequired[Annotated[int, "in a recipe: number of broken check rules"]]


class RetentionRow(TypedDict):
    """One checkpoint's score on one kind of task, from `eval`."""

    name: Annotated[str, "name of the checkpoint"]
    digest: Annotated[str, "sha256 of the checkpoint"]
    small_files_digest: Annotated[str, "sha256 of tokenizer, chat template and generation_config.json"]
    role: Annotated[str, "reference or candidate"]
    kind: Annotated[str, "kind of task, or `all` for the mean over the kinds"]
    items: Annotated[int, "number of scored tasks"]
    errors: Annotated[int, "number of scorer errors"]
    empty: Annotated[int, "number of empty answers"]
    score: Annotated[float | None, "mean score, 0 to 1; null if nothing was scored"]
    score_se: Annotated[float | None, "standard error of score"]
    score_low: Annotated[float | None, "lower end of the 95 % interval of score"]
    score_high: Annotated[float | None, "upper end of the 95 % interval of score"]
    retention: Annotated[float | None, "score over the reference's score, %; null if the reference scores 0"]
    retention_low: Annotated[float | None, "lower end of the 95 % interval of retention, %"]
    retention_high: Annotated[float | None, "upper end of the 95 % interval of retention, %"]
    suite: Annotated[str, "name of the task suite"]
    suite_digest: Annotated[str | None, "sha256 of the task suite"]
    runtime: Annotated[str, "transformers or vllm"]


class AnswerRow(TypedDict):
    """One checkpoint's answers to one prompt."""

    name: Annotated[str, "name of the checkpoint"]
    digest: Annotated[str, "sha256 of the checkpoint"]
    answers: Annotated[list[str], "one text per turn"]
    score: Annotated[float | None, "score, 0 to 1; null if not scored"]
    reason: Annotated[str | None, "the scorer's reason for the score"]


class SampleRow(TypedDict):
    """One prompt with the answers of all checkpoints."""

    id: Annotated[str, "id of the task"]
    kind: Annotated[str, "kind of task"]
    turns: Annotated[list[str], "user messages"]
    answers: Annotated[list[AnswerRow], "answers, the reference first"]


class TrendRow(TypedDict, total=False):
    """The part of a stored verdict that the report's trend plots show."""

    time: Annotated[str, "UTC, ISO 8601"]
    command: Annotated[str, "command that stored the verdict"]
    tag: Annotated[str, "label such as v1"]
    name: Annotated[str, "name of the checkpoint"]
    digest: Annotated[str, "sha256 of the checkpoint"]
    kind: Annotated[str, "always `all`: the mean over the kinds of tasks"]
    score: Annotated[float, "mean score over the kinds, 0 to 1"]
    kl: Annotated[float, "mean KL(reference ‖ candidate), nats per token"]


class ChangeRow(TypedDict):
    """One figure of `watch`: its value in the baseline, its value now, and the paired change."""

    name: Annotated[str, "name of the checkpoint in the baseline"]
    kind: Annotated[str, "name of the figure: a kind of task, or `all`, `kl` or `perplexity`"]
    unit: Annotated[str, "unit of the change: points (0 to 100), nats or %"]
    items: Annotated[int, "number of paired tasks or documents"]
    before: Annotated[float | None, "value in the baseline"]
    now: Annotated[float | None, "value in this run"]
    before_se: Annotated[float | None, "standard error of before; null for a kind of task"]
    now_se: Annotated[float | None, "standard error of now; null for a kind of task"]
    tokens: Annotated[int | None, "number of scored tokens in this run; null for a kind of task"]
    change: Annotated[float | None, "`now` minus `before`, in `unit`; for perplexity, in % of `before`"]
    change_low: Annotated[float | None, "lower end of the 95 % interval of change"]
    change_high: Annotated[float | None, "upper end of the 95 % interval of change"]
    too_few: Annotated[bool, "true if there are too few tasks for a significant fall"]
    fell: Annotated[bool, "true if the checkpoint got significantly worse, or dropped by more than --max-drop"]
    measured: Annotated[bool, "false if the same files were measured before, and the figures are from then"]


class SpeedRow(TypedDict):
    """One checkpoint that `bench` measured; null means that a figure could not be measured."""

    kind: Annotated[str, "measured"]
    name: Annotated[str, "name of the checkpoint"]
    path: Annotated[str, "folder of the checkpoint"]
    role: Annotated[str, "reference for the first checkpoint, else candidate"]
    digest: Annotated[str, "sha256 of the checkpoint"]
    runtime: Annotated[str, "transformers or vllm"]
    runtime_version: Annotated[str | None, "version of the runtime"]
    device: Annotated[str | None, "name of the GPU, or cpu with its architecture"]
    dtype: Annotated[str | None, "dtype of the computation"]
    prompt_tokens: Annotated[int, "tokens of a prompt"]
    new_tokens: Annotated[int, "generated tokens of a request"]
    batch_size: Annotated[int, "concurrent requests of the throughputs"]
    rounds: Annotated[int, "number of started processes"]
    repeats: Annotated[int, "number of measured requests in all rounds"]
    threads: Annotated[int | None, "threads of torch"]
    load_average: Annotated[float | None, "highest load of the machine before a round"]
    weights_bytes: Annotated[int, "size of all safetensors files, bytes"]
    peak_bytes: Annotated[
        int | None, "peak memory, bytes: of the process on a CPU, reserved by torch on a GPU; includes vLLM's KV cache"
    ]
    baseline_bytes: Annotated[int | None, "memory before loading, bytes"]
    kv_cache_bytes: Annotated[int | None, "size of vLLM's KV cache, bytes; null with transformers"]
    kv_cache_tokens: Annotated[int | None, "size of vLLM's KV cache, tokens; null with transformers"]
    kv_blocks: Annotated[int | None, "size of vLLM's KV cache, pages; null with transformers"]
    kv_block_size: Annotated[int | None, "tokens per page of vLLM's KV cache; null with transformers"]
    kv_bytes_per_token: Annotated[int, "predicted KV cache per token, bytes"]
    ttft_ms: Annotated[float | None, "time to first token of one request, median, ms"]
    ttft_ms_low: Annotated[float | None, "minimum of ttft_ms"]
    ttft_ms_high: Annotated[float | None, "maximum of ttft_ms"]
    tpot_ms: Annotated[float | None, "time per output token of one request, without the first, median, ms"]
    tpot_ms_low: Annotated[float | None, "minimum of tpot_ms"]
    tpot_ms_high: Annotated[float | None, "maximum of tpot_ms"]
    e2el_ms: Annotated[float | None, "end-to-end latency of one request, median, ms"]
    e2el_ms_low: Annotated[float | None, "minimum of e2el_ms"]
    e2el_ms_high: Annotated[float | None, "maximum of e2el_ms"]
    decode_throughput: Annotated[float | None, "new tokens of a batch per second, without the first ones, median"]
    decode_throughput_low: Annotated[float | None, "minimum of decode_throughput"]
    decode_throughput_high: Annotated[float | None, "maximum of decode_throughput"]
    output_throughput: Annotated[float | None, "new tokens of a batch per second, end to end, median"]
    output_throughput_low: Annotated[float | None, "minimum of output_throughput"]
    output_throughput_high: Annotated[float | None, "maximum of output_throughput"]
    total_token_throughput: Annotated[float | None, "prompt and new tokens of a batch per second, end to end, median"]
    total_token_throughput_low: Annotated[float | None, "minimum of total_token_throughput"]
    total_token_throughput_high: Annotated[float | None, "maximum of total_token_throughput"]
    largest_batch: Annotated[int | None, "most concurrent requests of this length; null with transformers"]
    largest_batch_how: Annotated[str | None, "source of largest_batch"]
    largest_batch_ran: Annotated[bool | None, "true if a batch of that size ran"]
    weights_bytes_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    peak_bytes_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    ttft_ms_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    tpot_ms_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    e2el_ms_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    decode_throughput_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    output_throughput_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    total_token_throughput_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    largest_batch_gain: Annotated[float | None, "improvement over the reference, %; null for the reference"]
    error: Annotated[str | None, "reason for missing figures"]
    note: Annotated[str | None, "remark on the figures"]


class CapacityRow(TypedDict):
    """One checkpoint on one hardware, predicted by `bench` from config.json and the headers of the weight files."""

    kind: Annotated[str, "predicted"]
    name: Annotated[str, "name of the checkpoint"]
    path: Annotated[str, "folder of the checkpoint, or its config.json"]
    role: Annotated[str, "reference for the first checkpoint, else candidate"]
    digest: Annotated[None, "always null"]
    hardware: Annotated[str, "value of --hardware, or gpu-memory"]
    hardware_title: Annotated[str, "full name of the hardware"]
    gpus: Annotated[int, "number of GPUs that share the model"]
    memory_bytes: Annotated[int, "memory of one GPU or board, bytes"]
    usable_bytes: Annotated[int, "part of the memory of all GPUs that vLLM may use, bytes"]
    bandwidth_bytes_per_s: Annotated[float | None, "memory bandwidth of one GPU, bytes per second; null if unknown"]
    capability: Annotated[str | None, "compute capability, such as 8.7; null if unknown"]
    kernel: Annotated[str | None, "vLLM's kernel for the quantized linears"]
    note: Annotated[str | None, "remark on the hardware"]
    weights_bytes: Annotated[int, "weights in the hardware's memory, bytes"]
    overhead_bytes: Annotated[int, "allowance for everything except weights and KV cache, bytes"]
    kv_cache_dtype: Annotated[str, "dtype of the KV cache; auto is the model's"]
    kv_bytes_per_token: Annotated[int, "KV cache per token until a sliding window is full, bytes"]
    kv_bytes_per_request: Annotated[int, "KV cache of one request of request_tokens, bytes"]
    prompt_tokens: Annotated[int, "tokens of a prompt"]
    new_tokens: Annotated[int, "generated tokens of a request"]
    request_tokens: Annotated[int, "prompt_tokens and new_tokens together"]
    max_requests: Annotated[int, "upper limit of largest_batch: vLLM's default max_num_seqs"]
    fits: Annotated[bool, "true if one request of request_tokens fits"]
    reason: Annotated[str | None, "reason why the request does not fit; null if it fits"]
    context_limit: Annotated[int, "longest context of the model, tokens"]
    longest_context: Annotated[int, "longest request that fits at batch size 1, tokens"]
    largest_batch: Annotated[int, "most concurrent requests of request_tokens that fit"]
    decode_tokens_per_s_estimate: Annotated[
        float | None,
        "upper bound of tokens per second at batch size 1; null if bandwidth is unknown or nothing fits",
    ]


class PlanRow(TypedDict):
    """One layout that `plan` lists."""

    format: Annotated[str, "awq, gptq or compressed-tensors"]
    group_size: Annotated[int, "columns that share a scale"]
    head_bits: Annotated[int, "bits of the output head; 16 is unquantized"]
    embedding_bits: Annotated[int, "bits of the embedding; 16 is unquantized"]
    eight_bit: Annotated[str | None, "linears with 8 bits, separated by spaces; null without such linears"]
    bytes: Annotated[int, "exact size of the weight files, bytes"]
    source_bytes: Annotated[int, "exact size of the model in 16 bits, bytes"]
    harm: Annotated[float, "ranks layouts, lower is better: with --measure the sum of the parts' KLs, else no unit"]
    predicted_kl: NotRequired[Annotated[dict[str, float], "with --measure: the KL that verify will find, by method"]]
    predicted_factor: NotRequired[Annotated[float, "verify's KL is within this factor of predicted_kl, both ways"]]
    fits: NotRequired[Annotated[bool, "with --max-size: true if the size is within it"]]
    vllm_gpu: Annotated[bool, "true if vLLM loads the layout on a GPU"]
    vllm_cpu: Annotated[bool, "true if vLLM loads the layout on a CPU"]
    transformers: Annotated[bool, "true if transformers loads the layout"]
    take: NotRequired[Annotated[bool, "true for the recommended layout; absent otherwise"]]


class ShipRow(TypedDict):
    """A bundle that `ship` has written."""

    model: Annotated[str, "path of the checkpoint"]
    out: Annotated[str, "path of the bundle"]
    hardware: Annotated[str, "value of --hardware"]
    runtime: Annotated[str, "vllm or llama.cpp"]
    image: Annotated[str, "container image, with its digest if that is known"]
    needed_bytes: Annotated[int, "predicted memory for weights, KV cache and everything else, bytes"]
    usable_bytes: Annotated[int, "memory of the board that the server may use, bytes"]
    tokens_per_s: Annotated[float | None, "predicted upper bound of tokens per second of one request; null if unknown"]
    bytes: Annotated[int, "size of the bundle, bytes"]
    signature: NotRequired[Annotated[str, "with --sign: path of the signature"]]
    oci: NotRequired[Annotated[str, "with --oci: path of the layout"]]
    oci_digest: NotRequired[Annotated[str, "with --oci: digest of the manifest"]]
    pushed: NotRequired[Annotated[str, "with --push: reference in the registry"]]


class FaultRow(TypedDict):
    """A fault that `ship --verify` has found in a bundle."""

    file: Annotated[str, "path inside the bundle"]
    fault: Annotated[str, "what is wrong with it"]


class HistoryRow(TypedDict):
    """One verdict in a history. It also has all keys of the row that the command stored, except `record`."""

    time: Annotated[str, "UTC, ISO 8601"]
    command: Annotated[str, "eval, verify, compare, check, bench or watch"]
    tag: Annotated[str | None, "label such as v1"]
    name: Annotated[str, "name of the checkpoint"]
    digest: Annotated[str, "sha256 of the checkpoint"]
    software: Annotated[dict[str, str], "versions of qcompress and of the packages that run models, by name"]
