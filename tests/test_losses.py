"""The chunked loss against the plain one: exact invariances first."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compress.losses import Head, Loss, Side, distill_loss, find_head, next_tokens, token_mean

TOKENS, WIDTH, VOCAB = 13, 6, 37
MASK = torch.tensor([True, True, False, True, False, False, True, True, True, True, False, True, True])
LINEAR = Head()
CAPPED = Head(scale=0.7, softcap=3.0)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_sides(
    student_vocab: int = VOCAB, teacher_vocab: int = VOCAB, head: Head = LINEAR
) -> tuple[Side, Side, Tensor]:
    """A student of width 6, a teacher of width 8, and labels that both know."""
    student = Side(
        random(TOKENS, WIDTH, seed=1).requires_grad_(), random(student_vocab, WIDTH, seed=2).requires_grad_(), head
    )
    teacher = Side(random(TOKENS, 8, seed=3), random(teacher_vocab, 8, seed=4), head)
    return student, teacher, torch.arange(TOKENS) * 5 % min(student_vocab, teacher_vocab)


def logits(side: Side) -> Tensor:
    z = side.hidden @ side.weight.T * side.head.scale
    return z if side.head.softcap is None else side.head.softcap * torch.tanh(z / side.head.softcap)


def plain(student: Side, teacher: Side, labels: Tensor, mask: Tensor, alpha: float, temperature: float) -> Loss:
    """The whole logits at once, straight from the formula."""
    size = min(len(student.weight), len(teacher.weight))
    ours, theirs = logits(student)[:, :size], logits(teacher)[:, :size]
    log_s, log_t = log_softmax(ours / temperature, -1), log_softmax(theirs / temperature, -1)
    kl = temperature**2 * kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    ce = cross_entropy(ours, labels, reduction="none")
    return Loss(token_mean(alpha * kl + (1 - alpha) * ce, mask), kl * mask, ce * mask)


def gradients(loss: Tensor, student: Side) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(loss, (student.hidden, student.weight))  # type: ignore[return-value]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocabularies", [(VOCAB, VOCAB), (VOCAB, 41), (41, VOCAB)])
@pytest.mark.parametrize("head", [LINEAR, CAPPED], ids=["linear", "capped"])
def test_chunks_never_change_loss_or_gradient(chunk, temperature, vocabularies, head):
    student, teacher, labels = make_sides(*vocabularies, head)
    expected = plain(student, teacher, labels, MASK, 0.7, temperature)
    found = distill_loss(student, teacher, labels, MASK, alpha=0.7, temperature=temperature, chunk=chunk)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(gradients(found.loss, student), gradients(expected.loss, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_kl_against_cross_entropy(alpha):
    student, teacher, labels = make_sides()
    expected = gradients(plain(student, teacher, labels, MASK, alpha, 2.0).loss, student)
    found = gradients(distill_loss(student, teacher, labels, MASK, alpha=alpha, temperature=2.0).loss, student)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_that_is_the_student_costs_nothing(temperature):
    student, _, labels = make_sides()
    teacher = Side(student.hidden.detach(), student.weight.detach())
    found = distill_loss(student, teacher, labels, MASK, alpha=1.0, temperature=temperature)
    assert found.loss == 0 and not found.kl.any()
    assert all(not gradient.any() for gradient in gradients(found.loss, student))


def test_micro_batches_add_up_to_the_full_batch():
    student, teacher, labels = make_sides()
    whole = distill_loss(student, teacher, labels, MASK)
    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 13)):
        sides = (Side(student.hidden[rows], student.weight), Side(teacher.hidden[rows], teacher.weight))
        parts.append(distill_loss(*sides, labels[rows], MASK[rows], total=MASK.sum().item()).loss)
    torch.testing.assert_close(sum(parts), whole.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(sum(parts), student), gradients(whole.loss, student), rtol=1e-9, atol=1e-12)


def test_masked_tokens_get_no_gradient_and_may_hold_any_label():
    student, teacher, labels = make_sides()
    found = distill_loss(student, teacher, torch.where(MASK, labels, 10**6), MASK)
    torch.testing.assert_close(found.loss, distill_loss(student, teacher, labels, MASK).loss)
    assert not gradients(found.loss, student)[0][~MASK].any()


def test_a_batch_without_tokens_costs_nothing():
    student, teacher, labels = make_sides()
    found = distill_loss(student, teacher, labels, torch.zeros_like(MASK))
    assert found.loss == 0 and not any(gradient.any() for gradient in gradients(found.loss, student))


def test_tied_heads_get_both_gradients():
    weight, ids = random(VOCAB, WIDTH, seed=5).requires_grad_(), torch.arange(TOKENS)
    _, teacher, labels = make_sides()

    def tied() -> Side:
        return Side(weight[ids].tanh(), weight)

    expected = torch.autograd.grad(plain(tied(), teacher, labels, MASK, 0.7, 2.0).loss, weight)
    found = torch.autograd.grad(distill_loss(tied(), teacher, labels, MASK, temperature=2.0).loss, weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_part_gets_no_gradient_and_changes_no_other(frozen):
    student, teacher, labels = make_sides()
    expected = dict(
        zip(("hidden", "weight"), gradients(distill_loss(student, teacher, labels, MASK).loss, student), strict=True)
    )
    half = student._replace(**{frozen: getattr(student, frozen).detach()})
    (trained,) = {"hidden", "weight"} - {frozen}
    (found,) = torch.autograd.grad(distill_loss(half, teacher, labels, MASK).loss, getattr(half, trained))
    assert torch.equal(found, expected[trained])


def test_the_vocabulary_is_cut_to_the_tokenizers_size():
    student, teacher, labels = make_sides()
    cut = (Side(student.hidden, student.weight[:30]), Side(teacher.hidden, teacher.weight[:30]))
    labels = labels % 30
    expected, found = distill_loss(*cut, labels, MASK), distill_loss(student, teacher, labels, MASK, vocab=30)
    torch.testing.assert_close(found.loss, expected.loss)
    assert not gradients(found.loss, student)[1][30:].any()


def test_without_grad_the_loss_is_the_same():
    student, teacher, labels = make_sides()
    with torch.no_grad():
        found = distill_loss(student, teacher, labels, MASK)
    assert found.loss == distill_loss(student, teacher, labels, MASK).loss.detach()


def test_inside_it_is_float32_whatever_comes_in():
    student, teacher, labels = make_sides()
    half = [Side(side.hidden.detach().bfloat16(), side.weight.detach().bfloat16()) for side in (student, teacher)]
    whole = [Side(side.hidden.float(), side.weight.float()) for side in half]
    torch.testing.assert_close(distill_loss(*half, labels, MASK).kl, distill_loss(*whole, labels, MASK).kl)


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
