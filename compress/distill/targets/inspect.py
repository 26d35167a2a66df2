"""inspect_cache(): what a cache holds, as a report row, every shard checked."""

from pathlib import Path

from compress.core.report import Row
from compress.distill.targets.cache import Manifest, read_manifest, read_shard, short
from compress.distill.targets.codecs import Codec, make_codec


def inspect_cache(path: Path) -> Row:
    """Codec, text, tokens, bytes, and for a codec that says so the teacher's mean entropy and the mass of its tail.

    QCompressError for a shard whose checksum does not hold. Missing shards are named, not refused.
    """
    manifest = read_manifest(path)
    codec = make_codec(manifest.codec)
    there = [name for name in manifest.files if (path / name).is_file()]
    row = {"cache": str(path), **facts(manifest, codec), **measure(path, manifest, there)}
    missing = [name for name in manifest.files if name not in there]
    return row | {"shards": f"{len(there)} of {len(manifest.files)}", "missing": ", ".join(missing) or None}


def facts(manifest: Manifest, codec: Codec) -> Row:
    """The manifest as a person reads it, digests cut short."""
    known = {name: short(value) for name, value in manifest.facts().items() if name != "codec"}
    return {"codec": manifest.codec["name"], "biased": codec.biased, **known}


def measure(path: Path, manifest: Manifest, files: list[str]) -> Row:
    """Tokens and bytes of these shards, and means over all of their tokens."""
    tokens = size = 0
    sums: dict[str, float] = {}
    for name in files:
        shard = read_shard(path / name, manifest)
        tokens += int(shard["ends"][-1])
        size += (path / name).stat().st_size
        if "codec.entropy" in shard:
            sums["entropy"] = sums.get("entropy", 0.0) + shard["codec.entropy"].double().sum().item()
            sums["tail_mass"] = sums.get("tail_mass", 0.0) + shard["codec.log_p"][:, -1].double().exp().sum().item()
    means = {name: total / max(tokens, 1) for name, total in sums.items()}
    return {"tokens": tokens, "bytes": size, "bytes_per_token": size / max(tokens, 1), **means}
