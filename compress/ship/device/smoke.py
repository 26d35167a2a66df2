#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare a running model server with the answers of the same weights on the machine that made this bundle.

    python3 smoke.py [--url http://127.0.0.1:8000] [--receipt receipt.json] [--min-tokens-per-s N]

smoke.json holds prompts as token ids, a greedy continuation of each, and at each step the most likely tokens with
their log-probabilities. The server continues the same ids. Where it leaves the continuation, it is put back on it, so
that every step is compared after equal text. The limits in smoke.json state how far a device may differ.

The exit code is 0 if all limits are kept, and 1 otherwise. The receipt stores every figure. This program needs only
the standard library of Python 3.8.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

HERE = Path(__file__).resolve().parent
SUMS, REFERENCE, RECEIPT = "SHA256SUMS", "smoke.json", "receipt.json"
CANDIDATES = 20  # log-probabilities that are requested per step
SECONDS = 600  # for one answer; the first one may compile kernels
SPEED_TOKENS = 64
SLOW = 0.1  # of the predicted tokens per second: below, a GPU may be idle

Row = Dict[str, Any]
Step = Tuple[int, Dict[int, float]]  # the generated token, and log-probabilities by token


class SmokeError(Exception):
    """The server cannot be tested: it does not answer, or answers in another form."""


class Server:
    """A server of one runtime: "vllm" or "llama.cpp"."""

    def __init__(self, url: str, runtime: str, model: str) -> None:
        self.url, self.runtime, self.model = url.rstrip("/"), runtime, model

    def call(self, path: str, payload: Row | None = None) -> Any:
        """The JSON that the server answers to a GET, or to a POST of `payload`. Raises SmokeError."""
        data = None if payload is None else json.dumps(payload).encode()
        headers = {"content-type": "application/json"}
        if os.environ.get("VLLM_API_KEY"):
            headers["authorization"] = "Bearer " + os.environ["VLLM_API_KEY"]
        request = urllib.request.Request(self.url + path, data, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=SECONDS) as response:
                return json.loads(response.read().decode())
        except urllib.error.HTTPError as error:
            body = error.read(500).decode("utf-8", "replace")
            raise SmokeError(f"{self.url}{path}: status {error.code}: {body}") from None
        except (OSError, ValueError) as error:
            raise SmokeError(f"{self.url}{path}: {error}") from None

    def continue_ids(self, ids: List[int], count: int) -> List[Step]:
        """At most `count` greedy steps after `ids`. The server stops earlier at a stop token."""
        form = self.vllm_steps if self.runtime == "vllm" else self.llama_steps
        try:
            return form(ids, count)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SmokeError(f"{self.url}: the answer has no log-probabilities by token id: {error!r}") from None

    def vllm_steps(self, ids: List[int], count: int) -> List[Step]:
        settings = {"logprobs": CANDIDATES, "return_tokens_as_token_ids": True}
        rows = self.call("/v1/completions", {**self.vllm_request(ids, count), **settings})["choices"][0]["logprobs"]
        tables = [{token_id(name): value for name, value in row.items()} for row in rows["top_logprobs"]]
        return list(zip(map(token_id, rows["tokens"]), tables))

    def llama_steps(self, ids: List[int], count: int) -> List[Step]:
        request = {**self.llama_request(ids, count), "n_probs": CANDIDATES}
        rows = self.call("/completion", request)["completion_probabilities"]
        return [(row["id"], {one["id"]: one["logprob"] for one in row["top_logprobs"]}) for row in rows]

    def vllm_request(self, ids: List[int], count: int) -> Row:
        return {"model": self.model, "prompt": ids, "max_tokens": count, "temperature": 0}

    def llama_request(self, ids: List[int], count: int) -> Row:
        return {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": False}

    def seconds(self, ids: List[int], count: int) -> float:
        """Seconds in which the server generates exactly `count` tokens."""
        vllm = self.runtime == "vllm"
        path, request = (
            ("/v1/completions", self.vllm_request(ids, count))
            if vllm
            else ("/completion", self.llama_request(ids, count))
        )
        started = time.perf_counter()
        self.call(path, {**request, "ignore_eos": True})
        return time.perf_counter() - started

    def tokens(self, text: str) -> List[int]:
        """The token ids of a text, with those that begin every text."""
        payload = {"model": self.model, "prompt": text} if self.runtime == "vllm" else {"content": text}
        answer = self.call("/tokenize", {**payload, "add_special": True, "add_special_tokens": True})
        return list(answer["tokens"])

    def check_model(self) -> None:
        """Raises SmokeError unless the server has the model of the bundle."""
        names = [row.get("id") for row in self.call("/v1/models").get("data", [])]
        if self.model not in names:
            raise SmokeError(f"{self.url}: serves {names}, not {self.model!r}")


def token_id(name: str) -> int:
    """The id in vLLM's "token_id:ID"."""
    return int(name.split(":")[1])


def compare_prompt(continue_ids: Callable[[List[int], int], List[Step]], prompt: Row) -> List[Row]:
    """A row per step of a prompt's continuation. All steps follow the same text as in the reference."""
    path, tops = prompt["tokens"], prompt["top"]
    rows: List[Row] = []
    while len(rows) < len(path):
        steps = continue_ids(prompt["ids"] + path[: len(rows)], len(path) - len(rows))
        if not steps:
            raise SmokeError("the server generates no token")
        for token, table in steps[: len(path) - len(rows)]:
            rows.append(compare_step(tops[len(rows)], table))
            if token != path[len(rows) - 1]:
                break
    return rows


def compare_step(top: List[List[Any]], table: Dict[int, float]) -> Row:
    """The differences of one step: of each listed log-probability, and by how much the first choice was not first.

    A token that the server does not list is less likely than all that it lists, so its difference is at least that.
    """
    least = min(table.values())
    differences = [abs(value - table.get(token, min(least, value))) for token, value in top]
    best = max(table, key=lambda token: table[token])
    known = {token: value for token, value in top}
    gap = top[0][1] - known.get(best, top[-1][1])  # in the reference; 0 if both have the same first choice
    return {"differences": differences, "agrees": best == top[0][0], "gap": gap}


def verdict(rows: List[Row], limits: Row) -> Row:
    """The figures of all steps, and the limits that they exceed."""
    values = [value for row in rows for value in row["differences"]]
    firsts = [row["differences"][0] for row in rows]
    figures = {
        "steps": len(rows),
        "mean_difference": round(sum(values) / len(values), 5),
        "largest_difference": round(max(firsts), 5),
        "largest_gap": round(max(row["gap"] for row in rows), 5),
        "agreeing_steps": sum(row["agrees"] for row in rows),
    }
    pairs = (("mean_difference", "mean"), ("largest_difference", "largest"), ("largest_gap", "tie"))
    faults = [
        f"{name.replace('_', ' ')} of log-probabilities is {figures[name]}, the limit is {limits[limit]}"
        for name, limit in pairs
        if not figures[name] <= limits[limit]
    ]
    return {**figures, "limits": limits, "faults": faults}


def tokenizer_faults(server: Server, prompts: List[Row]) -> Tuple[bool, List[str]]:
    """Whether the server's tokenizer could be compared, and its faults."""
    try:
        faults = [f"the text {row['text']!r:.60} gets other token ids" for row in prompts if differs(server, row)]
    except (SmokeError, KeyError, TypeError):
        return False, []
    return True, faults[:1]


def differs(server: Server, prompt: Row) -> bool:
    return server.tokens(prompt["text"]) != prompt["ids"]


def speed(server: Server, prompt: Row) -> float:
    """Generated tokens per second of one request, without the prompt's time."""
    first = server.seconds(prompt["ids"], 1)
    return SPEED_TOKENS / max(server.seconds(prompt["ids"], 1 + SPEED_TOKENS) - first, 1e-9)


def run(reference: Row, url: str, least: float | None) -> Row:
    """The receipt of a server. Raises SmokeError if it cannot be tested."""
    server = Server(url, reference["runtime"], reference["model"])
    server.check_model()
    prompts = reference["prompts"]
    rows = [row for prompt in prompts for row in compare_prompt(server.continue_ids, prompt)]
    result = verdict(rows, reference["limits"])
    result["tokenizer_compared"], faults = tokenizer_faults(server, prompts)
    result["faults"] += faults
    rate = speed(server, prompts[0])
    result["tokens_per_s"], result["predicted_tokens_per_s"] = round(rate, 2), reference["predicted_tokens_per_s"]
    if least is not None and rate < least:
        result["faults"].append(f"{rate:.1f} tokens/s, the limit is {least:g}")
    return result


def facts(reference: Row) -> Row:
    """What the receipt says about the bundle and the device."""
    sums = HERE / SUMS
    board = Path("/proc/device-tree/model")
    return {
        "schema": 1,
        "model": reference["model"],
        "runtime": reference["runtime"],
        "bundle": hashlib.sha256(sums.read_bytes()).hexdigest() if sums.is_file() else None,
        "reference": hashlib.sha256((HERE / REFERENCE).read_bytes()).hexdigest(),
        "device": board.read_text().strip("\0\n") if board.is_file() else platform.machine(),
        "system": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def summary(receipt: Row) -> str:
    """The receipt in one line."""
    if "steps" not in receipt:
        return f"smoke test: failed: {receipt['faults'][0]}"
    predicted = receipt["predicted_tokens_per_s"]
    rate = f"{receipt['tokens_per_s']} tokens/s" + (f" (at most {predicted} predicted)" if predicted else "")
    figures = f"{receipt['agreeing_steps']} of {receipt['steps']} greedy tokens agree, log-probabilities differ by "
    figures += f"{receipt['mean_difference']} on average, {rate}"
    faults = "; ".join(receipt["faults"])
    return f"smoke test: {'passed' if receipt['passed'] else f'failed: {faults}'}: {figures}"


def write_receipt(path: Path, receipt: Row) -> None:
    """Replace the receipt, in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(receipt, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare a model server with the reference in smoke.json.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the server")
    parser.add_argument("--receipt", type=Path, default=HERE / RECEIPT, help="file for the figures")
    parser.add_argument("--min-tokens-per-s", type=float, help="fail below this speed")
    options = parser.parse_args()
    reference = json.loads((HERE / REFERENCE).read_text(encoding="utf-8"))
    try:
        result = run(reference, options.url, options.min_tokens_per_s)
    except SmokeError as error:
        result = {"faults": [str(error)]}
    receipt = {**facts(reference), "passed": not result["faults"], **result}
    write_receipt(options.receipt, receipt)
    sys.stdout.write(summary(receipt) + "\n")
    predicted = receipt.get("predicted_tokens_per_s")
    if predicted and receipt["tokens_per_s"] < SLOW * predicted:
        sys.stdout.write("warning: less than a tenth of the predicted speed; is the GPU in use?\n")
    return 0 if receipt["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
