"""Compare vLLM's results with those of transformers: python scripts/vllm_test.py CHECKPOINT...

vLLM continues a few prompts greedily, all in one batch, then one alone. The reference is transformers, which scores the
same tokens in float32 with dequantized weights. With a tolerance of t nats:

- the log-probability of every token differs by at most t from the reference's;
- the mean difference is at most t / 10;
- every token that vLLM generated is the reference's most likely token, or at most t less likely.

The exit code is 1 if one of these conditions fails, or if vLLM does not load the checkpoint.

t is 0.2 in float16 and 1.0 in bfloat16, because vLLM rounds activations at every step and the reference does not.
Measured differences in nats, on SmolLM2-135M:

    weights                                    dtype       worst    mean
    unquantized                                float16     0.03     0.004
    unquantized                                bfloat16    0.5      0.04
    4 bits                                     float16     0.08     0.004
    zero points off by one in 1 of 210 linears float16     1.2      0.11
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.core.errors import QCompressError
from compress.runtimes.vllm_offline import VllmFailedError, open_vllm, run_in_new_process

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {"float16": 0.2, "bfloat16": 1.0}
TOKENS = 32
LENGTH = 512
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Question: A train leaves at 9:40 and the journey takes 85 minutes. When does it arrive?\nAnswer:",
    "When the lighthouse was built, nobody thought that anyone would ever live in it. The saver came once a week by "
    "boat, trimmed the wick, filled the tank with oil and rowed home before the tide turned. That changed in the "
    "winter of the great storm, when the boat was lost and the saver had to stay. He slept on sacks beside the lamp, "
    "ate what the gulls left, and wrote every evening in a small green book what he had seen: two ships with torn "
    "sails, a whale, a light on the other shore that answered his own. By spring he no longer wanted to leave. He "
    "built a bed, a table and a shelf for the book, and asked the harbour office for a chair, a kettle, some paper "
    "and, if there was one, a dog. The answer came in May. It was short, and it said",
)

Passage = dict[str, list[Any]]  # prompt_ids, token_ids, and logprobs of all these tokens except the first


def generate(request: dict[str, Any]) -> list[Passage]:
    """Continue all prompts in one batch, then the first prompt alone. Runs in vLLM's process."""
    from vllm import SamplingParams

    llm = open_vllm(request["checkpoint"], dtype=request["dtype"], max_model_len=LENGTH)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=1, prompt_logprobs=1)
    return [
        read_passage(output)
        for prompts in (PROMPTS, PROMPTS[:1])
        for output in llm.generate(prompts, greedy, use_tqdm=False)
    ]


def read_passage(output: Any) -> Passage:
    """The token ids and log-probabilities of one vLLM output."""
    prompt, chosen = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
    tables = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    logprobs = [table[token].logprob for table, token in zip(tables, (prompt + chosen)[1:], strict=True)]
    return {"prompt_ids": prompt, "token_ids": chosen, "logprobs": logprobs}


def compare(model: "PreTrainedModel", passages: list[Passage]) -> dict[str, float]:
    """Differences from the reference in nats: the largest, the mean, and the largest gap to its most likely token."""
    import torch

    differences, gaps = [], []
    for passage in passages:
        ids = torch.tensor(passage["prompt_ids"] + passage["token_ids"])
        with torch.no_grad():
            reference = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
        expected = reference.gather(-1, ids[1:, None])[:, 0]
        differences.append(expected - torch.tensor(passage["logprobs"]))
        generated = slice(len(passage["prompt_ids"]) - 1, None)
        gaps.append(reference[generated].amax(-1) - expected[generated])
    difference, behind = torch.cat(differences).abs(), torch.cat(gaps)
    return {
        "tokens": difference.numel(),
        "max_difference": difference.max().item(),
        "mean_difference": difference.mean().item(),
        "generated": behind.numel(),
        "other_choices": int((behind > 0).sum()),
        "max_behind": behind.max().item(),
    }


def evaluate(path: str, dtype: str | None, tolerance: float | None) -> dict[str, Any]:
    """Test one checkpoint. The row has the differences and whether vLLM agrees, or the reason why the test failed."""
    from compress.checkpoint.load import load_model
    from compress.checkpoint.read import Checkpoint

    row: dict[str, Any] = {"checkpoint": path, "agrees": False}
    try:
        checkpoint = Checkpoint(path)
        dtype = dtype or checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
        if dtype not in TOLERANCE:
            return row | {"reason": f"the dtype {dtype} has no tolerance; use --dtype {' or '.join(TOLERANCE)}"}
        limit = TOLERANCE[dtype] if tolerance is None else tolerance
        row |= {"format": (checkpoint.quantization or {}).get("quant_method"), "dtype": dtype, "tolerance": limit}
        passages = run_in_new_process(__file__, {"checkpoint": path, "dtype": dtype})
        expected = Checkpoint(path).tokenizer(list(PROMPTS))["input_ids"]
        if [passage["prompt_ids"] for passage in passages[: len(PROMPTS)]] != expected:
            return row | {"reason": "vLLM and transformers split the prompts into different tokens"}
        row |= compare(load_model(path), passages)
    except (VllmFailedError, QCompressError) as error:
        return row | {"reason": str(error)}
    within = row["max_difference"] <= limit and row["mean_difference"] <= limit / 10 and row["max_behind"] <= limit
    return row | {"agrees": within}


def describe(row: dict[str, Any]) -> str:
    """The row as one line of text."""
    name = f"{'agrees' if row['agrees'] else 'DIFFERS'}  {row['checkpoint']}"
    if "reason" in row:
        return f"{name}: {row['reason']}"
    setup = f"{row['format'] or 'not quantized'}, vLLM in {row['dtype']}"
    return (
        f"{name} ({setup}): log-probabilities of {row['tokens']} tokens differ by at most "
        f"{row['max_difference']:.4f} nats, {row['mean_difference']:.4f} on average (tolerance {row['tolerance']:g}); "
        f"{row['other_choices']} of {row['generated']} greedy tokens are not the reference's first choice; "
        f"largest gap {row['max_behind']:.4f}"
    )


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option(
    "--reference",
    type=click.Choice(["transformers"]),
    default="transformers",
    show_default=True,
    help="Runtime that vLLM is compared with.",
)
@click.option(
    "--dtype", type=click.Choice(list(TOLERANCE)), help="Dtype that vLLM computes in.  [default: the checkpoint's]"
)
@click.option("--tolerance", type=float, help="Tolerance in nats.  [default: 0.2 in float16, 1.0 in bfloat16]")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on stdout.")
def main(
    checkpoints: tuple[str, ...], reference: str, dtype: str | None, tolerance: float | None, as_json: bool
) -> None:
    rows = []
    for path in checkpoints:
        rows.append(evaluate(path, dtype, tolerance))
        click.echo(describe(rows[-1]), err=as_json)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    sys.exit(not all(row["agrees"] for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        request, answer = map(Path, sys.argv[2:])
        answer.write_text(json.dumps(generate(json.loads(request.read_text()))))
    else:
        main()
