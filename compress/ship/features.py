"""placeholder"""

from compress.checkpoint.read import Checkpoint


def missing_feature(checkpoint: Checkpoint, kv_dtype: str, vllm: str | None) -> str | None:
    return None
