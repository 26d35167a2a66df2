#!/usr/bin/env python
"""Compare llama.cpp's greedy text on a .gguf file with that of the checkpoint it was converted from.

    scripts/install_llama_cpp.sh
    python scripts/llama_cpp_test.py CKPT MODEL.gguf

The checkpoint runs in transformers, or with --vllm in vLLM (scripts/vllm.sh installs it). Both sides continue 20
prompts. The texts must agree up to the first near-tie: a step at which the checkpoint's two best logits differ by at
most --tie. llama.cpp rounds activations to 8 bits, so a near-tie may go either way. Exit code 3 otherwise.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch

from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint, open_checkpoint
from compress.runtimes.vllm_offline import open_vllm, run_in_new_process

PYTHON = Path(__file__).parents[1] / "build" / "llama-cpp" / "bin" / "python"
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The first president of the United States was",
    "To bake bread, you need flour, water,",
    "The opposite of hot is",
    "In the morning, the sun rises in the",
    "Photosynthesis is the process by which plants",
    "The largest planet in the solar system is",
    "A triangle has three",
    "Python is a programming language that",
    "Once upon a time, there was a",
    "The chemical symbol for gold is",
    "Shakespeare wrote the play",
    "The human heart pumps",
    "def add(a, b):\n    return",
    "Dogs are known for their",
    "The speed of light is about",
    "To make tea, boil water and",
    "The Great Wall of China was built to",
    "Ten plus five equals",
)
Greedy = tuple[list[int], list[float]]  # token ids, and the difference of the two best logits at each step
SERVER = """
import json, sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = sys.argv[1], 512, 1
server = xllamacpp.Server(settings)
ask = {"max_tokens": int(sys.argv[2]), "temperature": 0, "n_probs": 1}
for prompt in json.load(sys.stdin):
    print(json.dumps(server.handle_completions({"prompt": prompt, **ask})["choices"][0]["text"]))
"""


def llama_texts(python: Path, file: Path, tokens: int) -> list[str]:
    """llama.cpp's greedy continuation of each prompt."""
    command = [str(python), "-c", SERVER, str(file), str(tokens)]
    result = subprocess.run(command, input=json.dumps(PROMPTS), capture_output=True, text=True, check=False)
    if result.returncode:
        raise click.ClickException(f"{python}: llama.cpp stopped: {result.stderr.strip().splitlines()[-1:]}")
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('"')]


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, prompt: str, tokens: int) -> Greedy:
    """Token ids of the greedy continuation, and at each step the difference of the two best logits."""
    ids = torch.tensor([list(tokenizer(prompt)["input_ids"])])
    settings = {"max_new_tokens": tokens, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    result = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=tokenizer.eos_token_id, **settings)
    best = [logits[0].float().topk(2).values for logits in result.logits]
    return result.sequences[0, ids.shape[1] :].tolist(), [float(pair[0] - pair[1]) for pair in best]


def transformers_greedy(source: Checkpoint, tokens: int) -> list[Greedy]:
    """transformers' greedy continuation of each prompt."""
    model, tokenizer = load_model(source), source.tokenizer
    return [greedy(model, tokenizer, prompt, tokens) for prompt in PROMPTS]


def vllm_greedy(request: dict[str, Any]) -> list[Greedy]:
    """vLLM's greedy continuation of each prompt. Runs in vLLM's process."""
    from vllm import SamplingParams

    llm = open_vllm(request["checkpoint"], dtype="float16", max_model_len=512)
    settings = SamplingParams(temperature=0, max_tokens=request["tokens"], logprobs=2)
    answers = [output.outputs[0] for output in llm.generate(list(PROMPTS), settings, use_tqdm=False)]
    best = [
        [sorted((one.logprob for one in table.values()), reverse=True) for table in one.logprobs] for one in answers
    ]
    return [(list(one.token_ids), [row[0] - row[1] for row in rows]) for one, rows in zip(answers, best, strict=True)]


def compare(tokenizer: Any, ids: list[int], gaps: list[float], text: str, tie: float) -> dict[str, Any]:
    """How many tokens agree with llama.cpp's text, and the gap at the first difference (None: no difference)."""
    agreed = 0
    while agreed < len(ids) and text.startswith(tokenizer.decode(ids[: agreed + 1], skip_special_tokens=True)):
        agreed += 1
    gap = gaps[agreed] if agreed < len(ids) else None
    return {"tokens": len(ids), "agreed": agreed, "gap": gap, "passed": gap is None or gap <= tie}


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--python", type=click.Path(path_type=Path), default=PYTHON, help="Python with xllamacpp.")
@click.option("--tokens", default=24, show_default=True, help="Tokens per answer.")
@click.option("--tie", default=0.5, show_default=True, help="Largest difference of two logits that is a near-tie.")
@click.option("--vllm", is_flag=True, help="Run the checkpoint in vLLM.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="JSON file for the results.")
def main(checkpoint: Path, file: Path, python: Path, tokens: int, tie: float, vllm: bool, out: Path | None) -> None:
    if not python.exists():
        raise click.ClickException(f"{python}: not found; run scripts/install_llama_cpp.sh first")
    source = open_checkpoint(checkpoint)
    if vllm:
        expected = run_in_new_process(__file__, {"checkpoint": str(checkpoint), "tokens": tokens})
    else:
        expected = transformers_greedy(source, tokens)
    rows = []
    for prompt, text, (ids, gaps) in zip(PROMPTS, llama_texts(python, file, tokens), expected, strict=True):
        rows.append({"prompt": prompt} | compare(source.tokenizer, ids, gaps, text, tie))
        click.echo(f"{rows[-1]['agreed']:3d} of {rows[-1]['tokens']} tokens agree, gap {rows[-1]['gap']}: {prompt!r}")
    if out is not None:
        out.write_text(
            json.dumps(
                {"tie": tie, "tokens": tokens, "runtime": "vllm" if vllm else "transformers", "rows": rows}, indent=1
            )
            + "\n"
        )
    failed = sum(not row["passed"] for row in rows)
    click.echo(f"{len(rows) - failed} of {len(rows)} prompts agree up to the first near-tie")
    sys.exit(3 if failed else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        request, answer = map(Path, sys.argv[2:])
        answer.write_text(json.dumps(vllm_greedy(json.loads(request.read_text()))))
    else:
        main()
