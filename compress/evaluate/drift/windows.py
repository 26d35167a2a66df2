"""Evaluation windows, and the checks that make a comparison on them valid.

Text that a checkpoint was calibrated or trained on is an error. Different tokenizers are an error too: with them, the
same ids mean different words.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.heldout import heldout_start, heldout_windows
from compress.checkpoint.load import open_for_text, tokenizer_size
from compress.checkpoint.read import RECORD, Checkpoint, PathOrCheckpoint
from compress.core.errors import QCompressError
from compress.evaluate.drift.reference_cache import cached_start
from compress.model.blocks import make_config


def evaluation_windows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    text: str = "heldout",
    *,
    n_samples: int,
    seq_len: int,
    seed: int = 0,
    fit: bool = False,
    start: dict[str, Any] | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> Windows:
    """`n_samples` windows of `text` (an embedded name or a file), with the start token that suits the reference.

    If `start` is None, the start token comes from the reference's record or from `cache`, or else it is measured on
    `device`. With `fit`, a short text gives fewer or shorter windows. Raises QCompressError if a checkpoint was
    calibrated on `text`, or if no token is scored. Raises CalibrationError if `text` is unreadable.
    """
    checkpoints = [open_for_text(source) for source in (reference, *candidates)]  # fails early
    first = checkpoints[0]
    size: dict[str, Any] = {"n_samples": n_samples, "seq_len": seq_len, "seed": seed, "fit": fit}
    windows = heldout_windows(text, first.tokenizer, None, **size)
    check_text_unseen(windows.manifest, checkpoints)
    digest = windows.manifest["digest"]
    start = start or cached_start(cache, first) or heldout_start(first, device)
    if start["token"] is not None:
        windows = heldout_windows(text, first.tokenizer, start["token"], **size)
    if not windows.mask.any():
        raise QCompressError(
            f"{text}: none of the {windows.ids.numel():,} tokens is scored (in a chat, only the assistant's are); "
            "use more --samples, a larger --seq-len or another --eval-text"
        )
    return replace(windows, manifest=windows.manifest | {"start": start, "plain_windows": digest})


def check_text_unseen(manifest: dict[str, Any], checkpoints: Sequence[Checkpoint]) -> None:
    """Raises QCompressError if a checkpoint's record contains the digest of a text in these windows."""
    texts = {source["digest"]: source["name"] for source in manifest.get("sources", ())}
    for checkpoint in checkpoints:
        calibration = checkpoint.record.get("calibration") or {}
        for source in calibration.get("sources", ()):
            if source.get("digest") in texts:
                name, digest = texts[source["digest"]], source["digest"][:19]
                raise QCompressError(
                    f"{checkpoint.path / RECORD}: the checkpoint was calibrated on {name} ({digest}…); "
                    "use another --eval-text"
                )


def shared_vocabulary(checkpoints: Sequence[Checkpoint]) -> int:
    """The number of token ids that all models and tokenizers share. Padding of the vocabulary does not count."""
    sizes = [int(make_config(checkpoint.config).vocab_size) for checkpoint in checkpoints]
    return min(*sizes, *(tokenizer_size(checkpoint.tokenizer) for checkpoint in checkpoints))


def check_tokenizers(reference: Checkpoint, candidates: Sequence[Checkpoint], ids: Tensor, vocabulary: int) -> None:
    """Raises QCompressError if a candidate's tokenizer has other tokens, or splits the text of `ids` differently.

    `ids` are tokens of the reference, (n, seq).
    """
    tokenizer: Any = reference.tokenizer
    tokens, text = tokens_below(tokenizer, vocabulary), tokenizer.decode(ids.flatten().tolist())
    for candidate in candidates:
        other_tokens = tokens_below(candidate.tokenizer, vocabulary)
        if other_tokens != tokens:
            count = sum(tokens.get(one) != other_tokens.get(one) for one in tokens.keys() | other_tokens.keys())
            raise QCompressError(
                f"{candidate}: the tokenizer differs from that of {reference} in {count:,} tokens; "
                "compare models of one family, with the same tokenizer files"
            )
        if encode(tokenizer, text) != encode(candidate.tokenizer, text):
            raise QCompressError(
                f"{candidate}: the tokenizer has the same tokens as that of {reference}, but splits the same "
                f"{len(text):,} characters differently; use the same tokenizer files in both checkpoints"
            )


def tokens_below(tokenizer: Any, vocabulary: int) -> dict[str, int]:
    return {token: index for token, index in tokenizer.get_vocab().items() if index < vocabulary}


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
