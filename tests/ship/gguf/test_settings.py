import pytest

from compress.ship.gguf.settings import EXACT, GgufSettings


def test_without_a_budget_the_embedding_stays_as_it_is():
    assert list(EXACT.embedding_types(576)) == ["f16"]


@pytest.mark.parametrize(("columns", "types"), [(512, ["f16", "q8_0", "q6_k"]), (576, ["f16", "q8_0"]), (48, ["f16"])])
def test_a_budget_tries_the_most_exact_type_first(columns, types):
    assert list(GgufSettings(max_size=1).embedding_types(columns)) == types


def test_a_chosen_type_is_the_only_one_even_with_a_budget():
    assert list(GgufSettings("q6_k", max_size=1).embedding_types(512)) == ["q6_k"]


def test_an_unknown_type_is_refused_by_the_name_of_the_option():
    with pytest.raises(ValueError, match="--embedding-type q5_0 is not supported; choose one of"):
        GgufSettings("q5_0")
