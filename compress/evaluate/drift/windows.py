"""What both models read: evaluation windows, and what makes a comparison on them invalid.

Refused are text that one of the checkpoints was calibrated or trained on, and tokenizers that differ: the same ids
would be other words to the candidate.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from calibration.windows import Windows, build_windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import measure_blocks_start, open_causal_lm
from compress.checkpoint.read import RECORD, Checkpoint, PathOrCheckpoint
from compress.core.errors import QCompressError
from compress.evaluate.drift.reference_cache import known_start
from compress.model.blocks import BlockModel, make_config


def evaluation_windows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    text: str = "heldout",
    *,
    n_samples: int,
    seq_len: int,
    seed: int = 0,
    cache: Path | None = None,
) -> Windows:
    """`n_samples` windows of `text` (an embedded name or a file), beginning as the reference wants them to begin.

    A reference cache at `cache` knows how, where it is of the same text; it is measured otherwise.
    Raises QCompressError when a checkpoint was calibrated on `text` or no token counts, CalibrationError when it cannot
    be read.
    """
    checkpoints = [open_causal_lm(source) for source in (reference, *candidates)]  # a broken one fails first
    first = checkpoints[0]
    size = {"n_samples": n_samples, "seq_len": seq_len, "seed": seed}
    plain = build_windows([text], first.tokenizer, **size)
    refuse_seen_text(plain.manifest, checkpoints)
    digest = plain.manifest["digest"]
    start = known_start(cache, first, digest) or find_start(first, plain.ids)
    windows = plain
    if start["token"] is not None:
        windows = build_windows([text], first.tokenizer, **size, start_token=start["token"])
    if not windows.mask.any():
        raise QCompressError(
            f"{text}: none of the {windows.ids.numel():,} tokens that are read counts, of a conversation only the "
            "assistant's do; give more or longer windows, or another text"
        )
    return replace(windows, manifest=windows.manifest | {"start": start, "plain_windows": digest})


def find_start(reference: Checkpoint, ids: Tensor) -> dict[str, Any]:
    """How windows begin for the reference: as its record says it was calibrated, else measured on (n, seq) `ids`."""
    recorded = (reference.record.get("calibration") or {}).get("start")
    if isinstance(recorded, dict) and "token" in recorded:
        return recorded
    blocks = BlockModel(reference.config, weight_reader(reference))
    return asdict(measure_blocks_start(blocks, reference.tokenizer, ids))


def refuse_seen_text(manifest: dict[str, Any], checkpoints: Sequence[Checkpoint]) -> None:
    """QCompressError when the record of a checkpoint names a text that is in these windows, by its digest."""
    texts = {source["digest"]: source["name"] for source in manifest.get("sources", ())}
    for checkpoint in checkpoints:
        calibration = checkpoint.record.get("calibration") or {}
        for source in calibration.get("sources", ()):
            if source.get("digest") in texts:
                name, digest = texts[source["digest"]], source["digest"][:19]
                raise QCompressError(
                    f"{checkpoint.path / RECORD}: was calibrated on {name} ({digest}…), so it cannot be judged on it; "
                    "give --text another file"
                )


def tokenizer_size(tokenizer: Any) -> int:
    """One more than the highest id."""
    return max(tokenizer.get_vocab().values()) + 1


def shared_vocabulary(checkpoints: Sequence[Checkpoint]) -> int:
    """How many tokens all checkpoints and their tokenizers know: the rest of a padded vocabulary stands for nothing."""
    sizes = [int(make_config(checkpoint.config).vocab_size) for checkpoint in checkpoints]
    return min(*sizes, *(tokenizer_size(checkpoint.tokenizer) for checkpoint in checkpoints))


def refuse_other_tokenizers(
    reference: Checkpoint, candidates: Sequence[Checkpoint], ids: Tensor, vocabulary: int
) -> None:
    """QCompressError when a candidate's tokenizer has other tokens, or splits the text of `ids` (n, seq) otherwise."""
    ours: Any = reference.tokenizer
    known, text = tokens_below(ours, vocabulary), ours.decode(ids.flatten().tolist())
    for candidate in candidates:
        theirs = candidate.tokenizer
        other = tokens_below(theirs, vocabulary)
        if other != known:
            count = sum(known.get(token) != other.get(token) for token in known.keys() | other.keys())
            raise QCompressError(
                f"{candidate}: its tokenizer differs from that of {reference} in {count:,} tokens; "
                "compare models of one family, with the same tokenizer files"
            )
        if encode(ours, text) != encode(theirs, text):
            raise QCompressError(
                f"{candidate}: its tokenizer has the tokens of {reference} but splits the same {len(text):,} "
                "characters otherwise; copy the tokenizer files of one of them"
            )


def tokens_below(tokenizer: Any, vocabulary: int) -> dict[str, int]:
    return {token: index for token, index in tokenizer.get_vocab().items() if index < vocabulary}


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
