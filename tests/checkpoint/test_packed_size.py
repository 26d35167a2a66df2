"""The size that a student is promised in 4 bits is the size of the files that quantize writes."""

import pytest

from compress.checkpoint.packed_size import plain_int4_bytes
from compress.checkpoint.read import Checkpoint, read_json
from compress.core.config import QuantizeConfig
from compress.core.dtypes import Dtype
from compress.model.student import student_config, student_shape
from compress.quantize.layout.job_plan import plan_quantize, plan_without_weights


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen2"])
def test_the_size_in_4_bits_is_that_of_the_written_files(name, request):
    path = request.getfixturevalue(name)
    assert plain_int4_bytes(Checkpoint(path).config) == plan_quantize(path, QuantizeConfig())[1].bytes


@pytest.mark.parametrize("file", ["qwen2.5-7b-instruct", "qwen2.5-1.5b-instruct"])
def test_the_size_of_a_sharded_model_counts_every_header(file, request):
    config = read_json(request.config.rootpath / f"recipes/configs/{file}.json")
    plan = plan_without_weights(file, config, QuantizeConfig(dtype="bfloat16"))
    assert plain_int4_bytes(config, Dtype.bfloat16) == plan.bytes


def test_a_model_that_no_group_size_fits_has_no_size_in_4_bits(tiny_llama):
    config = Checkpoint(tiny_llama).config
    assert plain_int4_bytes(student_config(config, student_shape(config, intermediate_size=72), range(2))) is None
