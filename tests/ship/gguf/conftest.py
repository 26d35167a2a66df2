import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from compress.checkpoint.gguf.tokenizer import SAMPLE
from compress.ship.gguf.pieces import PREPEND, REPLACE, SPLIT, metaspace

SMALL = 500  # tokens
FORMS = {  # normalizer and pre_tokenizer of tokenizer.json
    "llama 2": ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None),
    "mistral": (None, metaspace("first")),
    "without a space": (None, metaspace("never")),
    "gemma": (REPLACE, SPLIT),
}


def piece_model(special, size):
    """The model of a SentencePiece tokenizer: BPE with bytes, trained on the sample, special tokens first."""
    tokenizer = Tokenizer(models.BPE(unk_token=special[0], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    first = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, min_frequency=1, show_progress=False)
    texts = SAMPLE if size > SMALL else SAMPLE[:1]  # few letters, so that there are merges
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog, and others too", *texts], trainer)
    return json.loads(tokenizer.to_str())["model"]


@pytest.fixture(scope="session")
def write_pieces():
    """write_pieces(folder, form, size): replace tokenizer.json by a SentencePiece tokenizer of FORMS."""

    def write(folder, form, size=384):
        state = json.loads((folder / "tokenizer.json").read_text())
        normalizer, pre_tokenizer = FORMS[form]
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend = Tokenizer(models.BPE())
        backend.decoder = decoders.Sequence(parts)
        state["model"] = piece_model([token["content"] for token in state["added_tokens"]], size)
        state |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None}
        state["decoder"] = json.loads(backend.to_str())["decoder"]
        (folder / "tokenizer.json").write_text(json.dumps(state))

    return write
