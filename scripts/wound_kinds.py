"""The kinds of wounds, by group: {group: {kind: wound}}. See wounds.py for the functions."""

import json
import shutil

import torch
from safetensors.torch import save_file
from wounds import (
    CODES,
    SCALES,
    WEIGHTS,
    Patient,
    Wound,
    config,
    content,
    cut,
    exchange,
    flip_bit,
    header,
    keys,
    model_of,
    multiply,
    named,
    one_group,
    one_output,
    other_block,
    quantization,
    random_half,
    remove,
    rename,
    replace,
    set_value,
    shift_data,
    swap,
    swap_nibbles,
    swap_outputs,
    tensor,
    zero_bytes,
)

EMBEDDING, HEAD, FINAL = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
BIAS, FIRST = "model.layers.0.self_attn.k_proj.bias", "model.layers.0.input_layernorm.weight"
SECOND = "model.layers.1.input_layernorm.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def both_thetas(value: float) -> Wound:
    def change(values: dict) -> None:  # type: ignore[type-arg]
        values["rope_theta"] = values["rope_parameters"]["rope_theta"] = value

    return lambda patient: patient.json("config.json", change)


def scaled_rope(values: dict) -> None:  # type: ignore[type-arg]
    rope = {"rope_type": "linear", "factor": 2.0}
    values["rope_parameters"] |= rope
    values["rope_scaling"] = rope


def rotate_ids(model: dict) -> None:  # type: ignore[type-arg]
    tokens = list(model["vocab"])
    model["vocab"] = {
        token: model["vocab"][after] for token, after in zip(tokens, tokens[1:] + tokens[:1], strict=True)
    }


def drop_token(model: dict) -> None:  # type: ignore[type-arg]
    model["vocab"].pop(next(token for token, number in model["vocab"].items() if number == 60))


def add_far_token(patient: Patient) -> None:
    token = {"id": 128, "content": "<|extra|>", "special": False, "single_word": False}
    token |= {"lstrip": False, "rstrip": False, "normalized": False}
    patient.json("tokenizer.json", lambda value: value["added_tokens"].append(token))


def without_special(patient: Patient) -> None:
    patient.json("tokenizer.json", lambda value: value["added_tokens"].pop())


def cut_file(patient: Patient) -> None:
    file = patient.path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def longer_file(patient: Patient) -> None:
    with (patient.path / WEIGHTS).open("ab") as file:
        file.write(bytes(64))


def gap(patient: Patient) -> None:
    raw = (patient.path / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    value = json.loads(raw[8 : 8 + length])
    middle = sorted(entry["data_offsets"][0] for entry in value.values() if "data_offsets" in entry)[len(value) // 2]
    shift_data(value, middle, 32)
    text, data = json.dumps(value).encode(), raw[8 + length :]
    data = data[:middle] + bytes(32) + data[middle:]
    (patient.path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)


def split_without_index(patient: Patient) -> None:
    names = sorted(patient.tensors)
    half = {name: patient.tensors.pop(name) for name in names[: len(names) // 2]}
    save_file(half, patient.path / "model-2.safetensors", metadata={"format": "pt"})


def stale_index(patient: Patient) -> None:
    save_file(patient.tensors, patient.path / "old.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys(patient.tensors, "old.safetensors")
    content("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": places}))(patient)


def index_of_nothing(patient: Patient) -> None:
    places = dict.fromkeys(patient.tensors, "gone.safetensors")
    content("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": places}))(patient)


def extra_weights(name: str) -> Wound:
    return lambda patient: save_file({"model.extra.weight": torch.ones(4)}, patient.path / name)


def block_of_other(patient: Patient) -> None:
    """Codes and scales of block 0 from a model with other weights."""
    other = Patient(patient.others["other seed"], patient.layout, {}, patient.random)
    for name in [name for name in patient.tensors if name.startswith("model.layers.0.")]:
        patient.tensors[name] = other.tensors[name]


def scales_of_other_linear(patient: Patient) -> None:
    suffix = SCALES[patient.layout]
    exchange(patient.tensors, f"model.layers.0.mlp.gate_proj.{suffix}", f"model.layers.0.mlp.up_proj.{suffix}")


def whole_other_folder(patient: Patient) -> None:
    for file in patient.others["other seed"].glob("*.safetensors"):
        shutil.copyfile(file, patient.path / file.name)


scales, codes, norm = Patient.scales, Patient.codes, Patient.norm
KINDS: dict[str, dict[str, Wound]] = {
    "header": {
        "file cut short": cut_file,
        "bytes appended": longer_file,
        "a gap between tensors": gap,
        "two tensors on top of each other": header(
            lambda p, value: value[FIRST].update(data_offsets=value[SECOND]["data_offsets"])
        ),
        "metadata that is not text": header(lambda p, value: value.update(__metadata__={"format": 1})),
        "a norm in bfloat16 instead of float16": header(lambda p, value: value[FIRST].update(dtype="BF16")),
        "scales in bfloat16 instead of float16": header(lambda p, value: value[scales(p)].update(dtype="BF16")),
        "codes as floats": header(lambda p, value: value[codes(p)].update(dtype="F32")),
        "a shape transposed": header(lambda p, value: value[codes(p)]["shape"].reverse()),
        "the data of two norms exchanged": header(lambda p, value: exchange(value, FIRST, SECOND)),
        "an unknown dtype": header(lambda p, value: value[FIRST].update(dtype="F17")),
        "offsets that run backwards": header(lambda p, value: value[FIRST]["data_offsets"].reverse()),
    },
    "packed values": {
        "a scale NaN": tensor(scales, set_value(float("nan"), (0, 0))),
        "a scale infinite": tensor(scales, set_value(float("inf"), (0, 0))),
        "a scale 0": tensor(scales, set_value(0.0, (1, 1))),
        "scales of one group of inputs x20": one_group(20.0),
        "scales of one output x20": one_output(20.0),
        "scales of one output negated": one_output(-1.0),
        "scales of one linear x1.6": tensor(scales, multiply(1.6)),
        "scales of one linear x2": tensor(scales, multiply(2.0)),
        "scales of one linear x0.5": tensor(scales, multiply(0.5)),
        "one linear negated": tensor(scales, multiply(-1.0)),
        "codes of one linear 0": tensor(codes, torch.zeros_like),
        "codes of one linear all ones": tensor(codes, set_value(-1)),
        "half of the codes random": tensor(codes, random_half),
        "words moved by one": tensor(codes, lambda words: words.roll(1)),
        "rows moved by one": tensor(codes, lambda words: words.roll(1, 0)),
        "nibbles in another order": tensor(codes, swap_nibbles),
        "two outputs exchanged": swap_outputs,
        "codes of two blocks exchanged": other_block(CODES),
        "scales of two blocks exchanged": other_block(SCALES),
        "scales of gate and up exchanged": scales_of_other_linear,
        "the lowest bit of one code": tensor(codes, flip_bit(0)),
        "the highest bit of one code": tensor(codes, flip_bit(3)),
        "the highest bit of one scale": tensor(scales, flip_bit(15)),
        "an exponent bit of one scale": tensor(scales, flip_bit(13)),
        "64 bytes of zeros": zero_bytes,
    },
    "plain values": {
        "a norm x3": tensor(norm, multiply(3.0)),
        "a norm negated": tensor(norm, multiply(-1.0)),
        "a norm of ones": tensor(norm, set_value(1.0)),
        "one number of a norm x2": tensor(norm, multiply(2.0, 5)),
        "one number of a norm negated": tensor(norm, multiply(-1.0, 5)),
        "the norms of two blocks exchanged": lambda p: exchange(p.tensors, FIRST, SECOND),
        "the last norm x3": tensor(named(FINAL), multiply(3.0)),
        "the last norm moved by one": tensor(named(FINAL), lambda values: values.roll(1)),
        "the embedding moved by a row": tensor(named(EMBEDDING), lambda values: values.roll(1, 0)),
        "one row of the embedding 0": tensor(named(EMBEDDING), set_value(0.0, 7)),
        "one bit of the embedding": tensor(named(EMBEDDING), flip_bit(3)),
        "the embedding x1.01": tensor(named(EMBEDDING), multiply(1.01)),
        "NaN in the embedding": tensor(named(EMBEDDING), set_value(float("nan"), (3, 3))),
        "the head negated": tensor(named(HEAD), multiply(-1.0)),
        "two rows of the head exchanged": tensor(named(HEAD), lambda values: values[[1, 0, *range(2, len(values))]]),
        "a bias negated": tensor(named(BIAS), multiply(-1.0)),
        "a bias 0": tensor(named(BIAS), set_value(0.0)),
        "one number of a bias x2": tensor(named(BIAS), multiply(2.0, 3)),
    },
    "names": {
        "codes missing": lambda p: p.tensors.pop(codes(p)),
        "scales missing": lambda p: p.tensors.pop(scales(p)),
        "a norm missing": lambda p: p.tensors.pop(norm(p)),
        "the embedding missing": lambda p: p.tensors.pop(EMBEDDING),
        "the head missing": lambda p: p.tensors.pop(HEAD),
        "a bias missing": lambda p: p.tensors.pop(BIAS),
        "q_proj renamed": rename(".q_proj.", ".query."),
        "a block renumbered": rename(".layers.1.", ".layers.2."),
        "the prefix model. missing": rename("model.", ""),
        "an unknown tensor": lambda p: p.tensors.update({"model.extra.weight": torch.ones(4)}),
        "a bias that the architecture lacks": lambda p: p.tensors.update(
            {"model.layers.0.mlp.down_proj.bias": torch.ones(64).half()}
        ),
        "a plain weight beside the codes": lambda p: p.tensors.update(
            {"model.layers.0.self_attn.q_proj.weight": torch.ones(64, 64).half()}
        ),
    },
    "config.json": {
        "hidden_act gelu": config(hidden_act="gelu"),
        "hidden_act unknown": config(hidden_act="gelou"),
        "rms_norm_eps x100": config(rms_norm_eps=1e-3),
        "rms_norm_eps missing": config(rms_norm_eps="absent"),
        "rms_norm_eps NaN": config(rms_norm_eps=float("nan")),
        "rope_theta in both spellings": both_thetas(10000.0),
        "rope_theta in the old spelling": config(rope_theta=10000.0),
        "rope scaled": lambda p: p.json("config.json", scaled_rope),
        "half as many heads": config(num_attention_heads=2, num_key_value_heads=1, head_dim=32),
        "as many key as query heads": config(num_key_value_heads=4),
        "a larger vocabulary": config(vocab_size=192),
        "a wider mlp": config(intermediate_size=256),
        "a shorter context": config(max_position_embeddings=128),
        "tied": config(tie_word_embeddings=True),
        "another eos_token_id": config(eos_token_id=7),
        "eos_token_id beyond the vocabulary": config(eos_token_id=4096),
        "another bos_token_id": config(bos_token_id=9),
        "pad_token_id beyond the vocabulary": config(pad_token_id=4096),
        "another model_type": config(model_type="llama", architectures=["LlamaForCausalLM"]),
        "an unknown architecture": config(architectures=["Qwen9ForCausalLM"]),
        "a block less": config(num_hidden_layers=1),
        "a block more": config(num_hidden_layers=3),
        "a sliding window": config(
            use_sliding_window=True, sliding_window=64, max_window_layers=0, layer_types="absent"
        ),
        "dtype bfloat16": config(dtype="bfloat16", torch_dtype="bfloat16"),
        "a size as text": config(hidden_size="64"),
        "no quantization_config": config(quantization_config="absent"),
        "another group_size": quantization(group_size=64, config_groups={}),
        "another quant_method": quantization(quant_method="fp8"),
        "not JSON": cut("config.json"),
        "empty": content("config.json", "{}"),
    },
    "tokenizer.json": {
        "cut short": cut("tokenizer.json"),
        "an empty object": content("tokenizer.json", "{}"),
        "a Git LFS pointer": content("tokenizer.json", LFS),
        "a byte order mark": lambda p: p.text("tokenizer.json", lambda text: "\ufeff" + text),
        "missing": remove("tokenizer.json"),
        "ids rotated": model_of(rotate_ids),
        "two ids exchanged": model_of(lambda model: exchange(model["vocab"], "a", "b")),
        "a token missing": model_of(drop_token),
        "an id of 2**40": model_of(lambda model: model["vocab"].update(a=2**40)),
        "a negative id": model_of(lambda model: model["vocab"].update(a=-1)),
        "half of the merges": model_of(lambda model: model.update(merges=model["merges"][: len(model["merges"]) // 2])),
        "no merges": model_of(lambda model: model.update(merges=[])),
        "the last merge missing": model_of(lambda model: model["merges"].pop()),
        "the merges reversed": model_of(lambda model: model["merges"].reverse()),
        "a merge of unknown tokens": model_of(lambda model: model["merges"].append(["Q", "Z"])),
        "the vocabulary a list": model_of(lambda model: model.update(vocab=list(model["vocab"]))),
        "a token beyond the embedding": add_far_token,
        "a special token missing": without_special,
        "an unknown pre_tokenizer": keys("tokenizer.json", pre_tokenizer={"type": "Nonsense"}),
        "another pre_tokenizer": keys("tokenizer.json", pre_tokenizer={"type": "Whitespace"}),
        "lower case": keys("tokenizer.json", normalizer={"type": "Lowercase"}),
        "no decoder": keys("tokenizer.json", decoder=None),
        "of another model": swap("tokenizer.json", "other tokenizer"),
    },
    "tokenizer_config.json": {
        "cut short": cut("tokenizer_config.json"),
        "a list": content("tokenizer_config.json", "[]"),
        "missing": remove("tokenizer_config.json"),
        "another eos_token": keys("tokenizer_config.json", eos_token="<s>"),
        "an unknown eos_token": keys("tokenizer_config.json", eos_token="<|nothing|>"),
        "no eos_token": keys("tokenizer_config.json", eos_token="absent"),
        "another bos_token": keys("tokenizer_config.json", bos_token="<|im_start|>"),
        "eos_token a number": keys("tokenizer_config.json", eos_token=3),
        "add_bos_token": keys("tokenizer_config.json", add_bos_token=True),
        "a class of transformers 5 only": keys("tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        "special_tokens_map.json with another eos": content("special_tokens_map.json", '{"eos_token": "<s>"}'),
        "added_tokens.json with another id": content("added_tokens.json", '{"<s>": 99}'),
    },
    "chat template": {
        "cut short": cut("chat_template.jinja", 0.7),
        "empty": content("chat_template.jinja", ""),
        "missing": remove("chat_template.jinja"),
        "without the user's text": replace("chat_template.jinja", "message['content']", "''"),
        "without the prompt for the answer": replace("chat_template.jinja", "<|im_start|>assistant\n", ""),
        "with other markers": replace("chat_template.jinja", "<|im_start|>", "<|start_header_id|>"),
        "of another model": content(
            "chat_template.jinja", "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
        ),
        "division by zero": content("chat_template.jinja", "{{ 1 / 0 }}"),
        "an unknown filter": content("chat_template.jinja", "{{ messages | nothing }}"),
        "a gigabyte of spaces": content("chat_template.jinja", "{{ messages | tojson(indent=10**9) }}"),
        "not UTF-8": content("chat_template.jinja", b"\xff\xfe\x00"),
    },
    "generation_config.json": {
        "another eos_token_id": keys("generation_config.json", eos_token_id=7),
        "eos_token_id beyond the vocabulary": keys("generation_config.json", eos_token_id=4096),
        "temperature -1": keys("generation_config.json", temperature=-1.0),
        "temperature 1.9": keys("generation_config.json", temperature=1.9),
        "top_p 2": keys("generation_config.json", top_p=2.0),
        "repetition_penalty as text": keys("generation_config.json", repetition_penalty="1.1"),
        "max_new_tokens 1": keys("generation_config.json", max_new_tokens=1),
        "cut short": cut("generation_config.json"),
        "missing": remove("generation_config.json"),
    },
    "other files": {
        "a stale index": stale_index,
        "an index of a missing file": index_of_nothing,
        "weights split without an index": split_without_index,
        "an extra weight file": extra_weights("extra.safetensors"),
        "Mistral's consolidated weights": extra_weights("consolidated.safetensors"),
        "a LoRA adapter": extra_weights("adapter_model.safetensors"),
        "pickled weights": content("pytorch_model.bin", b"\x80\x04"),
        "hf_quant_config.json": content("hf_quant_config.json", '{"quantization": {"quant_algo": "FP8"}}'),
        "weights missing": remove(WEIGHTS),
    },
    "swaps": {
        "weights of another model": whole_other_folder,
        "one block of another model": block_of_other,
        "config.json of another layout": swap("config.json", "other layout"),
        "weights of another layout": swap(WEIGHTS, "other layout"),
        "all prompt files of another model": lambda p: [
            swap(name, "other tokenizer")(p) for name in ("tokenizer.json", "tokenizer_config.json")
        ],
    },
}
