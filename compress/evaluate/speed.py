"""Speed and memory of a checkpoint: one row each, measured in a process of its own.

A row of `speed_rows`, bytes and seconds throughout; any figure is None where it could not be measured:
    kind name path role digest          "measured"; role is "reference" for the first checkpoint, else "candidate"
    engine engine_version device dtype  what ran it, where, in which dtype
    prompt_tokens new_tokens batch      a request, and how many of them for the throughput
    repeats rounds load_average         repeats in all; processes started; the machine's load before, the highest
    weights_bytes                       of the safetensors files
    peak_bytes baseline_bytes           most memory held, and how much before the model was loaded: of the whole process
                                        (CPU), or what torch reserved on the GPU; vLLM's includes its KV cache
    kv_cache_bytes kv_cache_tokens      what vLLM set aside; None with transformers
    kv_bytes_per_token                  predicted from config.json
    ttft_s generate_s latency_s         median seconds: prompt in and first token out; all other tokens; both
    ttft_s_low ttft_s_high …            the least and greatest of the repeats, for each of the three and the two below
    decode_tokens_per_s                 of one request, after its first token
    throughput_tokens_per_s             new tokens of all requests of a batch over its whole time
    largest_batch largest_batch_how     requests of this length at a time, and how that is known
    largest_batch_ran                   whether a batch of that size was run
    KEY_gain                            for each of GAINS: improvement over the reference in %; saved bytes and seconds,
                                        added tokens/s and requests; None in the reference's own row
    error                               why figures are missing, else None
    note                                what to know when reading the row, else None
"""
