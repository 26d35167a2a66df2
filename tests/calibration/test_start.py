import json
from dataclasses import asdict

import pytest
import torch

from calibration.start import choose_start

IDS = torch.tensor([[5, 6, 7, 8], [6, 7, 8, 9]])
START = 1


def scorer(calls, with_start, without):
    def nll(windows, first):
        calls.append(windows[:, first:].tolist())
        return with_start if (windows[:, 0] == START).all() else without

    return nll


@pytest.mark.parametrize(
    ("with_start", "without", "token"),
    [(4.4, 12.2, START), (3.2, 3.1, None), (3.0, 3.0, None), (3.0, float("inf"), START)],
)
def test_the_start_token_is_used_only_if_it_lowers_the_nll(with_start, without, token):
    verdict = choose_start(IDS, START, scorer([], with_start, without))
    assert (verdict.token, verdict.nll_with, verdict.nll_without) == (token, with_start, without)
    assert "token" in json.loads(json.dumps(asdict(verdict)))


def test_both_nlls_score_the_same_tokens():
    calls = []
    choose_start(IDS, START, scorer(calls, 1.0, 2.0))
    assert calls == [IDS[:, 1:].tolist()] * 2


def test_without_a_start_token_only_one_nll_is_computed():
    calls = []
    verdict = choose_start(IDS, None, scorer(calls, 1.0, 2.0))
    assert (verdict.token, verdict.nll_with, verdict.nll_without) == (None, None, 2.0) and len(calls) == 1


@pytest.mark.parametrize(
    ("with_start", "without", "word"), [(float("nan"), 1.0, "with "), (1.0, float("nan"), "without")]
)
def test_a_nan_nll_is_an_error(with_start, without, word):
    with pytest.raises(ValueError, match=f"nll {word}"):
        choose_start(IDS, START, scorer([], with_start, without))
