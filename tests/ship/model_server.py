"""A server with the APIs of vLLM and llama.cpp that the smoke test uses, on a checkpoint in transformers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.load import load_model, open_for_text, stop_tokens


class ModelServer:
    """Serves a checkpoint as `name` on a free port. `change` is called with the loaded model before it answers."""

    def __init__(self, checkpoint: Path, *, name: str = "tiny", change: Any = None) -> None:
        opened = open_for_text(checkpoint)
        self.model: Any = load_model(opened)
        self.tokenizer, self.stops, self.name = opened.tokenizer, stop_tokens(opened), name
        if change is not None:
            with torch.no_grad():
                change(self.model)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_model": self}))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, payload: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": self.name}]}
        if path == "/tokenize":
            return {"tokens": list(self.tokenizer(payload.get("prompt", payload.get("content")))["input_ids"])}
        if path == "/v1/completions":
            steps = self.steps(payload, payload["max_tokens"], payload.get("logprobs", 1))
            tables = [{f"token_id:{token}": value for token, value in table.items()} for _, table in steps]
            rows = {"tokens": [f"token_id:{token}" for token, _ in steps], "top_logprobs": tables}
            return {"choices": [{"logprobs": rows}]}
        steps = self.steps(payload, payload["n_predict"], payload.get("n_probs", 1))
        listed = [[{"id": token, "logprob": value} for token, value in table.items()] for _, table in steps]
        rows = [{"id": token, "top_logprobs": top} for (token, _), top in zip(steps, listed, strict=True)]
        return {"completion_probabilities": rows}

    @torch.no_grad()
    def steps(self, payload: dict[str, Any], count: int, top: int) -> list[tuple[int, dict[int, float]]]:
        ids, steps = list(payload["prompt"]), []
        for _ in range(count):
            scores = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            best = scores.topk(top)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ids.append(int(scores.argmax()))
            steps.append((ids[-1], dict(pairs)))
            if ids[-1] in self.stops and not payload.get("ignore_eos"):
                break
        return steps


class Handler(BaseHTTPRequestHandler):
    server_model: ModelServer

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def reply(self, payload: dict[str, Any]) -> None:
        body = b"" if self.path == "/health" else json.dumps(self.server_model.answer(self.path, payload)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass
