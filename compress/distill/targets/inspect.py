"""inspect_cache(): verify all shards of a cache, and describe its contents in a report row."""

from math import fsum
from pathlib import Path

import numpy as np

from compress.core.report import Row
from compress.distill.targets.codec_settings import CodecSettings, check_codec
from compress.distill.targets.manifest import Manifest, read_manifest, read_parts, short


def inspect_cache(path: Path) -> Row:
    """A report row with the cache's codec, text, tokens, bytes and missing shards.

    For codec hybrid, the row also has the teacher's mean entropy in nats and the mean probability outside the top_k.
    Raises QCompressError if a shard has a wrong checksum.
    """
    manifest = read_manifest(path)
    codec = check_codec(manifest.codec)
    present = [name for name in manifest.files if (path / name).is_file()]
    row = {"cache": str(path), **facts(manifest, codec), **measure(path, manifest, present)}
    missing = [name for name in manifest.files if name not in present]
    return row | {"shards": f"{len(present)} of {len(manifest.files)}", "missing": ", ".join(missing) or None}


def facts(manifest: Manifest, codec: CodecSettings) -> Row:
    """The codec's name, whether it is biased, and the manifest's settings with shortened digests."""
    values = {name: short(value) for name, value in manifest.facts().items() if name != "codec"}
    return {"codec": manifest.codec["name"], "biased": codec.biased, **values}


def measure(path: Path, manifest: Manifest, files: list[str]) -> Row:
    """The numbers of tokens and bytes in the shards `files`, and means per token."""
    tokens = size = 0
    sums: dict[str, float] = {}
    for name in files:
        shard = read_parts(path / name, manifest)
        tokens += int(shard["ends"].array()[-1])
        size += (path / name).stat().st_size
        if "codec.entropy" in shard:
            sums["entropy"] = sums.get("entropy", 0.0) + fsum(shard["codec.entropy"].array().tolist())
            tail = np.exp(shard["codec.log_p"].array()[:, -1].astype(np.float64))
            sums["tail_mass"] = sums.get("tail_mass", 0.0) + fsum(tail.tolist())
    means = {name: total / max(tokens, 1) for name, total in sums.items()}
    return {"tokens_counted": tokens, "bytes": size, "bytes_per_token": size / max(tokens, 1), **means}
