"""bundle.json: what the bundle holds, for which board, and what was predicted and measured. Its schema is beside it."""

import json
from importlib.metadata import version
from pathlib import Path

from compress.checkpoint.formats import format_of
from compress.core.report import Row
from compress.ship.bundle.compose import memory_limit
from compress.ship.bundle.lineage import ancestors
from compress.ship.bundle.plan import MODEL, BundlePlan
from compress.ship.bundle.quality import quality_rows

MANIFEST, SCHEMA = "bundle.json", Path(__file__).with_name("bundle.schema.json")


def manifest(plan: BundlePlan) -> Row:
    """The content of bundle.json."""
    return {
        "schema": 1,
        "name": plan.name,
        "made_by": f"qcompress {version('qcompress')}",
        "model": model_facts(plan),
        "board": {"name": plan.board.name, "title": plan.board.title, "unified_memory": plan.board.unified},
        "runtime": {
            "name": plan.config.runtime,
            "version": plan.board.vllm if plan.for_vllm else None,
            "image": plan.image.pinned,
            "image_digest": plan.image.digest,
            "image_file": f"image/{plan.image.archive.name}" if plan.image.archive else None,
            "arguments": plan.arguments,
        },
        "request": {
            "context": plan.config.context,
            "requests": plan.config.requests,
            "kv_cache_dtype": plan.config.kv_cache_dtype,
            "tensor_parallel_size": plan.gpus,
            "dtype": plan.dtype,
        },
        "predicted": {"bytes": predicted_bytes(plan), "tokens_per_s": plan.fit.tokens_per_s},
        "quality": quality_rows(plan.checkpoint, plan.config.history),
        "ancestors": list(ancestors(plan.checkpoint.record)),
    }


def model_facts(plan: BundlePlan) -> Row:
    """Where the model lies in the bundle, and the digest of the checkpoint that was shipped."""
    checkpoint = plan.checkpoint
    row = format_of(checkpoint)
    return {
        "path": MODEL if plan.for_vllm else f"{MODEL}/{plan.gguf}",
        "format": ("gguf" if not plan.for_vllm else row.name if row else "16 bits"),
        "architecture": str((checkpoint.config.get("architectures") or ["unknown"])[0]),
        "bytes": checkpoint.bytes,
        "digest": checkpoint.digest,
    }


def predicted_bytes(plan: BundlePlan) -> dict[str, int]:
    """The bytes that the gate has computed, by part."""
    fit = plan.fit
    return {
        "weights": fit.weights,
        "kv_cache": fit.kv_cache,
        "allowance": fit.allowance,
        "needed": fit.needed,
        "usable": fit.usable,
        "load_peak": fit.load_peak,
        "host": memory_limit(plan),
    }


def json_text(value: Row) -> str:
    """A value as JSON text. Equal values give equal bytes."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
