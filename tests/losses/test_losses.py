"""The chunked loss: exact invariances first, then comparisons with the plain loss."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compress.losses import (
    DIVERGENCES,
    Head,
    LogitSource,
    Loss,
    Sparse,
    distill_loss,
    find_head,
    next_tokens,
    token_mean,
)

TOKENS, WIDTH, VOCAB = 13, 6, 37
MASK = torch.tensor([True, True, False, True, False, False, True, True, True, True, False, True, True])
LINEAR = Head()
CAPPED = Head(scale=0.7, softcap=3.0)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_sides(
    student_vocab: int = VOCAB, teacher_vocab: int = VOCAB, head: Head = LINEAR
) -> tuple[LogitSource, LogitSource, Tensor]:
    """A student of width 6, a teacher of width 8, and labels that are in both vocabularies."""
    student = LogitSource(
        random(TOKENS, WIDTH, seed=1).requires_grad_(), random(student_vocab, WIDTH, seed=2).requires_grad_(), head
    )
    teacher = LogitSource(random(TOKENS, 8, seed=3), random(teacher_vocab, 8, seed=4), head)
    return student, teacher, torch.arange(TOKENS) * 5 % min(student_vocab, teacher_vocab)


def logits(side: LogitSource) -> Tensor:
    z = side.hidden @ side.weight.T * side.head.scale
    return z if side.head.softcap is None else side.head.softcap * torch.tanh(z / side.head.softcap)


def kl_of(log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def plain_jsd(log_t: Tensor, log_s: Tensor, beta: float) -> Tensor:
    log_m = (beta * log_t.exp() + (1 - beta) * log_s.exp()).log()
    return beta * kl_of(log_t, log_m) + (1 - beta) * kl_of(log_s, log_m)


PLAIN = {
    "kl": lambda log_t, log_s, beta: kl_of(log_t, log_s),
    "reverse_kl": lambda log_t, log_s, beta: kl_of(log_s, log_t),
    "jsd": plain_jsd,
}


def plain(
    student: LogitSource,
    teacher: LogitSource,
    labels: Tensor,
    mask: Tensor,
    alpha: float,
    temperature: float,
    divergence: str = "kl",
    beta: float = 0.5,
) -> Loss:
    """The loss from whole logits, written as the formula."""
    size = min(len(student.weight), len(teacher.weight))
    ours, theirs = logits(student)[:, :size], logits(teacher)[:, :size]
    log_s, log_t = log_softmax(ours / temperature, -1), log_softmax(theirs / temperature, -1)
    kl = temperature**2 * PLAIN[divergence](log_t, log_s, beta)
    ce = cross_entropy(ours, labels, reduction="none")
    return Loss(token_mean(alpha * kl + (1 - alpha) * ce, mask), kl * mask, ce * mask)


def gradients(loss: Tensor, student: LogitSource) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(loss, (student.hidden, student.weight))  # type: ignore[return-value]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocabularies", [(VOCAB, VOCAB), (VOCAB, 41), (41, VOCAB)])
@pytest.mark.parametrize("head", [LINEAR, CAPPED], ids=["linear", "capped"])
def test_chunks_never_change_loss_or_gradient(chunk, temperature, vocabularies, head):
    student, teacher, labels = make_sides(*vocabularies, head)
    expected = plain(student, teacher, labels, MASK, 0.7, temperature)
    actual = distill_loss(student, teacher, labels, MASK, alpha=0.7, temperature=temperature, chunk=chunk)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(gradients(actual.loss, student), gradients(expected.loss, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 4, 13])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("divergence", "beta"), [("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)])
@pytest.mark.parametrize("head", [LINEAR, CAPPED], ids=["linear", "capped"])
def test_every_divergence_is_its_formula_in_every_chunk(chunk, temperature, divergence, beta, head):
    student, teacher, labels = make_sides(VOCAB, 41, head)
    options = {"alpha": 0.7, "temperature": temperature, "divergence": divergence, "beta": beta}
    expected = plain(student, teacher, labels, MASK, **options)
    actual = distill_loss(student, teacher, labels, MASK, chunk=chunk, **options)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(gradients(actual.loss, student), gradients(expected.loss, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_table_of_divergences_is_tested_whole():
    assert set(DIVERGENCES) == set(PLAIN)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_kl_against_cross_entropy(alpha):
    student, teacher, labels = make_sides()
    expected = gradients(plain(student, teacher, labels, MASK, alpha, 2.0).loss, student)
    actual = gradients(distill_loss(student, teacher, labels, MASK, alpha=alpha, temperature=2.0).loss, student)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_teacher_that_is_the_student_costs_nothing(temperature, divergence):
    student, _, labels = make_sides()
    teacher = LogitSource(student.hidden.detach(), student.weight.detach())
    actual = distill_loss(student, teacher, labels, MASK, alpha=1.0, temperature=temperature, divergence=divergence)
    assert actual.loss.abs() < 1e-15 and actual.kl.abs().max() < 1e-14
    assert all(gradient.abs().max() < 1e-15 for gradient in gradients(actual.loss, student))
    if divergence != "jsd":  # its logarithm of (1 - beta) + beta rounds
        assert actual.loss == 0 and not actual.kl.any()


def test_micro_batches_add_up_to_the_full_batch():
    student, teacher, labels = make_sides()
    whole = distill_loss(student, teacher, labels, MASK)
    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 13)):
        sides = (LogitSource(student.hidden[rows], student.weight), LogitSource(teacher.hidden[rows], teacher.weight))
        parts.append(distill_loss(*sides, labels[rows], MASK[rows], total=MASK.sum().item()).loss)
    torch.testing.assert_close(sum(parts), whole.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(sum(parts), student), gradients(whole.loss, student), rtol=1e-9, atol=1e-12)


def test_masked_tokens_get_no_gradient_and_may_hold_any_label():
    student, teacher, labels = make_sides()
    actual = distill_loss(student, teacher, torch.where(MASK, labels, 10**6), MASK)
    torch.testing.assert_close(actual.loss, distill_loss(student, teacher, labels, MASK).loss)
    assert not gradients(actual.loss, student)[0][~MASK].any()


def test_a_batch_without_tokens_costs_nothing():
    student, teacher, labels = make_sides()
    actual = distill_loss(student, teacher, labels, torch.zeros_like(MASK))
    assert actual.loss == 0 and not any(gradient.any() for gradient in gradients(actual.loss, student))


def test_tied_heads_get_both_gradients():
    weight, ids = random(VOCAB, WIDTH, seed=5).requires_grad_(), torch.arange(TOKENS)
    _, teacher, labels = make_sides()

    def tied() -> LogitSource:
        return LogitSource(weight[ids].tanh(), weight)

    expected = torch.autograd.grad(plain(tied(), teacher, labels, MASK, 0.7, 2.0).loss, weight)
    actual = torch.autograd.grad(distill_loss(tied(), teacher, labels, MASK, temperature=2.0).loss, weight)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_part_gets_no_gradient_and_changes_no_other(frozen):
    student, teacher, labels = make_sides()
    expected = dict(
        zip(("hidden", "weight"), gradients(distill_loss(student, teacher, labels, MASK).loss, student), strict=True)
    )
    half = student._replace(**{frozen: getattr(student, frozen).detach()})
    (trained,) = {"hidden", "weight"} - {frozen}
    (actual,) = torch.autograd.grad(distill_loss(half, teacher, labels, MASK).loss, getattr(half, trained))
    assert torch.equal(actual, expected[trained])


def test_the_vocabulary_is_cut_to_the_tokenizers_size():
    student, teacher, labels = make_sides()
    cut = (LogitSource(student.hidden, student.weight[:30]), LogitSource(teacher.hidden, teacher.weight[:30]))
    labels = labels % 30
    expected, actual = distill_loss(*cut, labels, MASK), distill_loss(student, teacher, labels, MASK, vocab=30)
    torch.testing.assert_close(actual.loss, expected.loss)
    assert not gradients(actual.loss, student)[1][30:].any()


def test_without_grad_the_loss_is_the_same():
    student, teacher, labels = make_sides()
    with torch.no_grad():
        actual = distill_loss(student, teacher, labels, MASK)
    assert actual.loss == distill_loss(student, teacher, labels, MASK).loss.detach()


def test_inside_it_is_float32_whatever_comes_in():
    student, teacher, labels = make_sides()
    half = [
        LogitSource(side.hidden.detach().bfloat16(), side.weight.detach().bfloat16()) for side in (student, teacher)
    ]
    whole = [LogitSource(side.hidden.float(), side.weight.float()) for side in half]
    torch.testing.assert_close(distill_loss(*half, labels, MASK).kl, distill_loss(*whole, labels, MASK).kl)


def dense_as_sparse(teacher: LogitSource, vocab: int, temperature: float) -> Sparse:
    """Sparse targets with every id of the vocabulary, in another order, and its exact probability."""
    ids = torch.randperm(vocab, generator=torch.Generator().manual_seed(6)).expand(TOKENS, vocab)
    p = (logits(teacher)[:, :vocab] / temperature).softmax(-1)
    return Sparse(ids, p.gather(-1, ids), -(p * p.log()).sum(-1), vocab)


@pytest.mark.parametrize("chunk", [1, 4, 13])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("head", [LINEAR, CAPPED], ids=["linear", "capped"])
def test_sparse_targets_that_name_every_token_are_the_dense_ones(chunk, temperature, head):
    student, teacher, labels = make_sides(41, VOCAB, head)
    expected = distill_loss(student, teacher, labels, MASK, temperature=temperature)
    sparse = dense_as_sparse(teacher, VOCAB, temperature)
    actual = distill_loss(student, sparse, labels, MASK, temperature=temperature, chunk=chunk)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(actual.loss, student), gradients(expected.loss, student), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sparse_targets_with_repeated_tokens_or_partial_mass_are_the_formula(temperature):
    student, _, labels = make_sides()
    ids, weights = (
        torch.randint(0, VOCAB, (TOKENS, 5), generator=torch.Generator().manual_seed(1)),
        torch.rand(TOKENS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    entropy = random(TOKENS, seed=8)
    log_s = (logits(student) / temperature).log_softmax(-1)
    kl = temperature**2 * (-(weights * log_s.gather(-1, ids)).sum(-1) - entropy)
    actual = distill_loss(
        student, Sparse(ids, weights, entropy, VOCAB), labels, MASK, alpha=1.0, temperature=temperature, chunk=4
    )
    torch.testing.assert_close(actual.kl, kl * MASK, rtol=1e-9, atol=1e-9)
    expected = gradients(token_mean(kl, MASK), student)
    torch.testing.assert_close(gradients(actual.loss, student), expected, rtol=1e-9, atol=1e-9)


def test_micro_batches_of_sparse_targets_add_up_too():
    student, teacher, labels = make_sides()
    sparse = dense_as_sparse(teacher, VOCAB, 1.0)
    whole = distill_loss(student, sparse, labels, MASK).loss
    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 13)):
        some = Sparse(sparse.ids[rows], sparse.weights[rows], sparse.entropy[rows], VOCAB)
        side = LogitSource(student.hidden[rows], student.weight)
        parts.append(distill_loss(side, some, labels[rows], MASK[rows], total=MASK.sum().item()).loss)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
def test_sparse_targets_teach_the_forward_kl_only(divergence):
    student, teacher, labels = make_sides()
    with pytest.raises(ValueError, match="use --divergence kl"):
        distill_loss(student, dense_as_sparse(teacher, VOCAB, 1.0), labels, MASK, divergence=divergence)


def test_sparse_targets_of_a_larger_vocabulary_are_refused_with_both_numbers():
    student, teacher, labels = make_sides(VOCAB, 41)
    with pytest.raises(ValueError, match="sparse targets are for 41 tokens, but the loss uses 37"):
        distill_loss(student, dense_as_sparse(teacher, 41, 1.0), labels, MASK)


def test_a_label_outside_the_common_vocabulary_is_named():
    student, teacher, labels = make_sides(41, VOCAB)
    with pytest.raises(ValueError, match=r"label 40 .* 37 tokens"):
        distill_loss(student, teacher, torch.full_like(labels, 40), MASK)


def test_every_position_predicts_the_next_token():
    labels, mask = next_tokens(torch.tensor([[7, 8, 9]]), torch.tensor([[False, True, False]]))
    assert labels.tolist() == [[8, 9]] and mask.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("config", "head"),
    [
        ({}, Head()),
        ({"logits_scaling": 8.0}, Head(scale=0.125)),
        ({"final_logit_softcapping": 30.0}, Head(softcap=30.0)),
        ({"final_logit_softcapping": None}, Head()),
    ],
    ids=["llama", "granite", "gemma2", "gemma3"],
)
def test_heads_that_scale_or_cap_are_read_off_the_config(config, head):
    assert find_head(config) == head
