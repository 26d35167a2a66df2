"""Codecs: what comes back, that the expected target is the dense one, how many bytes it takes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from compress.core.errors import QCompressError
from compress.core.pack import pack_ids, unpack_ids
from compress.distill.config import CODECS as NAMES
from compress.distill.targets import codecs
from compress.distill.targets.codecs import CODECS, Hidden, Hybrid, TopK, make_codec
from compress.losses import Head, LogitSource, Sparse

TOKENS, WIDTH, VOCAB = 9, 6, 60


def teacher(seed: int = 0, head: Head = Head()) -> LogitSource:  # noqa: B008
    generator = torch.Generator().manual_seed(seed)
    return LogitSource(
        torch.randn(TOKENS, WIDTH, generator=generator), torch.randn(64, WIDTH, generator=generator), head
    )


def dense(side: LogitSource, temperature: float) -> Tensor:
    z = side.hidden @ side.weight[:VOCAB].T * side.head.scale
    return (z / temperature).softmax(-1)


def spread(sparse: Any) -> Tensor:
    """Sparse targets as (tokens, VOCAB) weights."""
    assert isinstance(sparse, Sparse)
    return torch.zeros(len(sparse.ids), VOCAB).scatter_add_(-1, sparse.ids, sparse.weights)


def uniform(seed: int) -> Tensor:
    return torch.rand(TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_command_line_offers_every_codec():
    assert set(NAMES) == set(CODECS)


def test_ids_come_back_and_the_low_byte_lies_first():
    ids = torch.tensor([[0, 1, 255, 256], [151_935, 2**16, 2**24 - 1, 7]])
    assert torch.equal(unpack_ids(pack_ids(ids)), ids)
    assert pack_ids(torch.tensor([[151_935]])).tolist() == [[0x7F, 0x51, 0x02]]
    with pytest.raises(ValueError, match="0 to 16777216 do not fit"):
        pack_ids(torch.tensor([0, 2**24]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_hidden_states_come_back_with_the_teachers_head(dtype, tolerance):
    side, codec = teacher(head=Head(scale=0.5)), Hidden(dtype)
    decoded = codec.decode(codec.encode(side, uniform(0)), side)
    torch.testing.assert_close(decoded.hidden, side.hidden, rtol=tolerance, atol=tolerance)
    assert decoded.head == side.head and decoded.weight is side.weight


def test_a_hidden_state_that_overflows_is_refused():
    side = teacher()._replace(hidden=torch.full((2, WIDTH), 1e5))
    with pytest.raises(QCompressError, match=r"100000 overflows torch.float16"):
        Hidden("float16").encode(side, uniform(0)[:2])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("head", [Head(), Head(scale=0.5)], ids=["plain", "scaled"])
def test_the_mean_hybrid_target_is_the_dense_one(temperature, head):
    side, codec = teacher(head=head), Hybrid(VOCAB, temperature, top_k=4, draws=3)
    numbers = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    many = side._replace(hidden=side.hidden.repeat(400, 1))
    drawn = codec.decode(codec.encode(many, numbers.repeat_interleave(TOKENS)), side)
    mean = spread(drawn).view(400, TOKENS, VOCAB).mean(0)
    torch.testing.assert_close(mean, dense(side, temperature), rtol=0.02, atol=1e-3)


def test_the_likeliest_tokens_of_a_hybrid_target_are_exact_in_every_draw():
    side, codec = teacher(), Hybrid(VOCAB, 1.0, top_k=4, draws=3)
    p = dense(side, 1.0)
    best, ids = p.topk(4)
    for seed in range(3):
        decoded = codec.decode(codec.encode(side, uniform(seed)), side)
        torch.testing.assert_close(spread(decoded).gather(-1, ids), best, rtol=3e-3, atol=0)
        torch.testing.assert_close(decoded.weights.sum(-1), torch.ones(TOKENS))
        torch.testing.assert_close(decoded.entropy, -(p * p.log()).sum(-1), rtol=1e-4, atol=1e-5)


def test_a_draw_never_names_a_likeliest_token():
    side, codec = teacher(), Hybrid(VOCAB, 1.0, top_k=4, draws=20)
    for number in (0.0, 0.5, 1 - 1e-16):
        ids = unpack_ids(codec.encode(side, torch.full((TOKENS,), number, dtype=torch.float64))["ids"])
        assert not (ids[:, 4:, None] == ids[:, None, :4]).any()


def test_a_tail_without_mass_weighs_nothing():
    side, codec = teacher()._replace(hidden=torch.zeros(2, WIDTH)), Hybrid(VOCAB, 1.0, top_k=1, draws=3)
    certain = side._replace(
        hidden=torch.eye(WIDTH)[:2] * 1e4, weight=torch.eye(WIDTH).repeat(10, 1) * torch.arange(60)[:, None]
    )
    decoded = codec.decode(codec.encode(certain, uniform(0)[:2]), certain)
    assert decoded.weights[:, 0].tolist() == [1, 1] and not decoded.weights[:, 1:].any()


def test_topk_is_biased_by_the_dropped_tokens_and_marked_as_biased():
    side = teacher()
    p = dense(side, 1.0)
    for renormalise, total in ((True, torch.ones(TOKENS)), (False, p.topk(5).values.sum(-1))):
        codec = TopK(VOCAB, 1.0, top_k=5, renormalise=renormalise)
        decoded = codec.decode(codec.encode(side, uniform(0)), side)
        torch.testing.assert_close(decoded.weights.sum(-1), total, rtol=1e-3, atol=0)
        assert codec.biased and torch.equal(decoded.ids, p.topk(5).indices)
    assert not Hybrid.biased and not Hidden.biased


@pytest.mark.parametrize("codec", [Hidden(), Hybrid(VOCAB), TopK(VOCAB, top_k=7)])
def test_a_token_takes_the_promised_bytes_in_any_chunk(codec, monkeypatch):
    side = teacher()
    parts = codec.encode(side, uniform(0))
    assert sum(tensor[0].nbytes for tensor in parts.values()) == codec.bytes_per_token(WIDTH)
    monkeypatch.setattr(codecs, "CHUNK_LOGITS", 2 * VOCAB)
    torch.testing.assert_close(codec.encode(side, uniform(0)), parts)


def test_hybrid_takes_at_most_a_hundred_bytes():
    assert Hybrid(151_936).bytes_per_token(3584) <= 100


@pytest.mark.parametrize("codec", [Hidden(), Hybrid(VOCAB), TopK(VOCAB)])
def test_no_tokens_are_no_rows_of_the_same_shape(codec):
    side = teacher()
    some, none = codec.encode(side, uniform(0)), codec.encode(side._replace(hidden=side.hidden[:0]), uniform(0)[:0])
    assert {name: (t.dtype, t.shape[1:]) for name, t in some.items()} == {
        name: (t.dtype, t.shape[1:]) for name, t in none.items()
    }


@pytest.mark.parametrize(
    "settings", [{"name": "topk", "vocab": 9, "top_k": 9}, {"name": "hybrid", "vocab": 99, "draws": 0}]
)
def test_impossible_codec_settings_are_named(settings):
    with pytest.raises(ValueError, match=r"top_k must be from 1 to (8|98), and draws must be 1 or more"):
        make_codec(settings)
