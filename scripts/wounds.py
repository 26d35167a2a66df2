"""Wounds: ways in which a checkpoint on disk can be damaged, as tables of small functions of a `Patient`.

`scripts/check_wounds.py` applies each to tiny checkpoints and counts what `qcompress check` notices.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
CODES = {"awq": "qweight", "gptq": "qweight", "compressed-tensors": "weight_packed"}
SCALES = {"awq": "scales", "gptq": "scales", "compressed-tensors": "weight_scale"}
LINEARS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass
class Patient:
    """A copy of a checkpoint to damage: its folder, its layout, other checkpoints, and random choices."""

    path: Path
    layout: str
    others: dict[str, Path]
    random: random.Random
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, which `save` writes back."""
        if not self._tensors:
            self._tensors |= load_file(self.path / WEIGHTS)
        return self._tensors

    def save(self) -> None:
        if self._tensors:
            tensors = {name: tensor.contiguous() for name, tensor in self._tensors.items()}
            save_file(tensors, self.path / WEIGHTS, metadata={"format": "pt"})

    def linear(self) -> str:
        """A random packed linear."""
        return f"model.layers.{self.random.randrange(2)}.{self.random.choice(LINEARS)}"

    def codes(self) -> str:
        return f"{self.linear()}.{CODES[self.layout]}"

    def scales(self) -> str:
        return f"{self.linear()}.{SCALES[self.layout]}"

    def norm(self) -> str:
        return f"model.layers.{self.random.randrange(2)}.{self.random.choice(NORMS)}.weight"

    def text(self, name: str, change: Callable[[str], str]) -> None:
        file = self.path / name
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")

    def json(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the object in a JSON file in place."""
        value = json.loads((self.path / name).read_text(encoding="utf-8"))
        change(value)
        (self.path / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    def header(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the header of the weight file in place; the data stay."""
        raw = (self.path / WEIGHTS).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (self.path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


Wound = Callable[[Patient], Any]


def tensor(choose: Callable[[Patient], str], change: Callable[[Tensor], Tensor | None]) -> Wound:
    """A wound to one tensor. `change` returns the new tensor, or None if it changed it in place."""

    def wound(patient: Patient) -> None:
        name = choose(patient)
        changed = change(patient.tensors[name])
        if changed is not None:
            patient.tensors[name] = changed

    return wound


def named(name: str) -> Callable[[Patient], str]:
    return lambda patient: name


def config(**values: Any) -> Wound:
    """Set keys of config.json; the string "absent" removes one."""
    return lambda patient: patient.json("config.json", lambda config: set_keys(config, values))


def set_keys(target: dict[str, Any], values: dict[str, Any]) -> None:
    target.update(values)
    for key in [key for key, value in values.items() if value == "absent"]:
        del target[key]


def quantization(**values: Any) -> Wound:
    return lambda patient: patient.json("config.json", lambda config: config["quantization_config"].update(values))


def keys(name: str, **values: Any) -> Wound:
    """Set keys of a JSON file."""
    return lambda patient: patient.json(name, lambda value: set_keys(value, values))


def content(name: str, text: str | bytes) -> Wound:
    """Replace or add a file."""

    def wound(patient: Patient) -> None:
        file = patient.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    return wound


def remove(name: str) -> Wound:
    return lambda patient: (patient.path / name).unlink()


def replace(name: str, old: str, new: str) -> Wound:
    def change(text: str) -> str:
        assert old in text, (name, old)
        return text.replace(old, new)

    return lambda patient: patient.text(name, change)


def cut(name: str, share: float = 0.5) -> Wound:
    return lambda patient: patient.text(name, lambda text: text[: int(len(text) * share)])


def swap(name: str, other: str) -> Wound:
    """Take a file from another checkpoint."""
    return lambda patient: shutil.copyfile(patient.others[other] / name, patient.path / name)


def model_of(change: Callable[[dict[str, Any]], Any]) -> Wound:
    """Change the BPE model in tokenizer.json."""
    return lambda patient: patient.json("tokenizer.json", lambda tokenizer: change(tokenizer["model"]))


def header(change: Callable[[Patient, dict[str, Any]], Any]) -> Wound:
    return lambda patient: patient.header(lambda value: change(patient, value))


def shift_data(value: dict[str, Any], start: int, by: int) -> None:
    for entry in value.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= start:
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]


def exchange(value: dict[str, Any], first: str, second: str, key: str | None = None) -> None:
    """Exchange two entries of an object, or one key of two entries."""
    if key is None:
        value[first], value[second] = value[second], value[first]
    else:
        value[first][key], value[second][key] = value[second][key], value[first][key]


def rename(old: str, new: str) -> Wound:
    def wound(patient: Patient) -> None:
        for name in [name for name in patient.tensors if old in name]:
            patient.tensors[name.replace(old, new)] = patient.tensors.pop(name)

    return wound


def flip_bit(bit: int) -> Callable[[Tensor], None]:
    """Flip one bit of one number."""

    def change(words: Tensor) -> None:
        words.view(torch.int32 if words.element_size() == 4 else torch.int16).flatten()[7] ^= 1 << bit

    return change


def multiply(factor: float, where: Any = slice(None)) -> Callable[[Tensor], None]:
    def change(values: Tensor) -> None:
        values[where] = values[where] * factor

    return change


def set_value(value: float, where: Any = slice(None)) -> Callable[[Tensor], None]:
    def change(values: Tensor) -> None:
        values[where] = value

    return change


def one_output(factor: float) -> Wound:
    """All scales of one output."""

    def wound(patient: Patient) -> None:
        scales = patient.tensors[patient.scales()]
        multiply(factor, 3 if patient.layout == "compressed-tensors" else (slice(None), 3))(scales)

    return wound


def one_group(factor: float) -> Wound:
    """All scales of one group of inputs."""

    def wound(patient: Patient) -> None:
        scales = patient.tensors[patient.scales()]
        multiply(factor, (slice(None), 1) if patient.layout == "compressed-tensors" else 1)(scales)

    return wound


def other_block(suffixes: dict[str, str]) -> Wound:
    """Exchange one tensor of a linear between the two blocks."""

    def wound(patient: Patient) -> None:
        local = f"{patient.random.choice(LINEARS)}.{suffixes[patient.layout]}"
        exchange(patient.tensors, f"model.layers.0.{local}", f"model.layers.1.{local}")

    return wound


def swap_nibbles(words: Tensor) -> Tensor:
    return (words & ~0xFF) | ((words & 0xF) << 4) | ((words >> 4) & 0xF)


def random_half(words: Tensor) -> None:
    half = words[: len(words) // 2]
    half.copy_(torch.randint(-(2**31), 2**31 - 1, half.shape, generator=torch.Generator().manual_seed(0)).int())


def swap_outputs(patient: Patient) -> None:
    """Exchange two words of outputs, or two outputs where each has words of its own."""
    codes = patient.tensors[patient.codes()]
    if patient.layout == "compressed-tensors":
        codes[[1, 2]] = codes[[2, 1]]
    else:
        codes[:, [1, 2]] = codes[:, [2, 1]]


def zero_bytes(patient: Patient) -> None:
    """64 bytes of zeros somewhere in the data of the weight file."""
    raw = bytearray((patient.path / WEIGHTS).read_bytes())
    place = len(raw) - patient.random.randrange(128, len(raw) // 2)
    raw[place : place + 64] = bytes(64)
    (patient.path / WEIGHTS).write_bytes(raw)
