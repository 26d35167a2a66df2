"""Features of newer releases of vLLM are recognized in checkpoints, and refused by older releases only."""

import pytest

from compress.checkpoint.vllm_models import ARCHITECTURES, VLLM_VERSION
from compress.core.config import QuantizeConfig
from compress.ship.features import ABSENT_MODELS, FEATURES, missing_feature, numbers, reads_layout

STUDENT = "seed-student"


def test_no_feature_is_newer_than_the_official_image():
    assert all(numbers(feature.since) <= numbers(VLLM_VERSION) for feature in FEATURES)
    assert all(models <= ARCHITECTURES for models in ABSENT_MODELS.values())


def test_releases_compare_by_numbers():
    assert numbers("0.9.2") < numbers("0.19.0") < numbers("0.19.1")


@pytest.mark.parametrize(
    ("settings", "since"), [({"head_bits": 4}, "0.20.0"), ({"head_bits": 8, "embedding_bits": 8}, "0.23.0")]
)
def test_a_layout_needs_the_release_that_brought_it(headers, settings, since):
    checkpoint = headers(STUDENT, "compressed-tensors", **settings)
    assert missing_feature(checkpoint, "auto", since) is None
    assert missing_feature(checkpoint, "auto", None) is None
    assert "needs" in missing_feature(checkpoint, "auto", "0.19.0")
    config = QuantizeConfig(method="rtn", format="compressed-tensors", **settings)
    assert reads_layout(config, since) and reads_layout(config, None) and not reads_layout(config, "0.19.0")


def test_a_packed_awq_head_is_old_enough_for_every_image(headers):
    checkpoint = headers(STUDENT, "awq", head_bits=4)
    assert missing_feature(checkpoint, "auto", "0.18.0") is None
    assert reads_layout(QuantizeConfig(method="rtn", format="awq", head_bits=4), "0.18.0")


def test_an_architecture_that_the_release_lacks_is_named(headers):
    checkpoint = headers(STUDENT)
    checkpoint.config["architectures"] = ["Ministral3ForCausalLM"]
    try:
        assert "0.19.0, which does not implement Ministral3ForCausalLM" in missing_feature(checkpoint, "auto", "0.19.0")
        assert missing_feature(checkpoint, "auto", "0.32.0") is None
    finally:
        checkpoint.config["architectures"] = ["Qwen2ForCausalLM"]
