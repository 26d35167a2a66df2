"""Run a model one decoder block at a time: load a block, run it, release it.

The model's own code computes embeddings, masks, rotary tables and the head, so this file contains no architecture.
A `Recorder` replaces every block in the model and stores the arguments of each call. A `Weights` function returns a
tensor by its parameter name, so this file does not depend on where tensors are stored.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.initialization import no_init_weights

from compress.core.errors import BadValueError
from compress.model.config_keys import plain_config
from compress.model.experts import ExpertLinear, split_experts
from compress.model.families import Stage, find_family
from compress.model.shapes import Linear, ModelShapes, Vocabulary

Weights = Callable[[str], Tensor]
HEAD_WINDOWS = 4  # windows whose logits are in memory at a time
HEAD_ROWS = 16384  # vocabulary rows per slice of the head: the whole head of a 7B model takes 2.2 GB in float32


@dataclass(frozen=True)
class Block:
    """A decoder block with its weights in memory. Its name is a path such as "model.layers.3".

    `linears` and `stages` name linears by their path inside the block; linears that stay in 16 bits are left out.
    `stages` is None for an unknown family. `experts` is the path of the block's experts, None without experts.
    """

    name: str
    module: nn.Module
    linears: dict[str, nn.Linear]
    stages: tuple[Stage, ...] | None
    experts: str | None = None


def make_config(config: dict[str, Any]) -> PretrainedConfig:
    """The transformers config for the content of a config.json. Settings of quantization are left out.

    Raises ValueError if the model type is unknown or sizes contradict each other.
    """
    plain = {key: value for key, value in plain_config(config).items() if key not in ("model_type", "auto_map")}
    with foreign_errors("transformers cannot use these settings"):
        settings: PretrainedConfig = AutoConfig.for_model(config.get("model_type", ""), **plain)
    return settings


@contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Turn every exception of transformers into a ValueError: its code does not check all values of a config.json."""
    try:
        yield
    except StrictDataclassError as error:
        raise BadValueError(f"the config contradicts itself: {error.__cause__ or error}") from None
    except ValueError:
        raise
    except Exception as error:
        raise BadValueError(f"{what} ({type(error).__name__}: {error})") from error


def make_skeleton(config: dict[str, Any]) -> PreTrainedModel:
    """The causal LM in eval mode, without weights: its parameters are on the meta device, its buffers are computed."""
    settings = make_config(config)
    with foreign_errors("transformers cannot build this model"):
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
            split_experts(model, settings.model_type)
        model.tie_weights()  # a tied head shares the embedding's parameter, so it is listed once
    return model.eval().requires_grad_(False)


def set_parameter(module: nn.Module, path: str, tensor: Tensor) -> None:
    owner, _, name = path.rpartition(".")
    module.get_submodule(owner)._parameters[name] = nn.Parameter(tensor, requires_grad=False)


def fill(module: nn.Module, prefix: str, weights: Weights, dtype: torch.dtype, *, small_experts: bool = False) -> None:
    """Set every parameter of `module` to the tensor with the name `prefix` + its path, in `dtype`.

    Stored buffers, such as the bias of a router, keep their dtype. With `small_experts`, experts that are stored in 16
    bits keep their dtype too. Raises ValueError if a tensor has another shape than the parameter.
    """
    for path, parameter in list(module.named_parameters()):
        tensor = fitting(f"{prefix}{path}", parameter.shape, weights)
        keeps = small_experts and tensor.element_size() == 2
        small = keeps and isinstance(module.get_submodule(path.rpartition(".")[0]), ExpertLinear)
        set_parameter(module, path, tensor if small else tensor.to(dtype))
    for path, buffer in stored_buffers(module).items():
        owner, _, name = path.rpartition(".")
        module.get_submodule(owner)._buffers[name] = fitting(f"{prefix}{path}", buffer.shape, weights)


def fitting(name: str, shape: torch.Size, weights: Weights) -> Tensor:
    """The tensor `name`. Raises ValueError if it has another shape."""
    tensor = weights(name)
    if tensor.shape != shape:
        raise BadValueError(
            f"{name}: the tensor on disk has shape {tuple(tensor.shape)}, but the config needs {tuple(shape)}"
        )
    return tensor


def stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that checkpoints store, by path. Computed tables, such as rotary frequencies, are not stored."""
    stored = module.state_dict(keep_vars=True).keys()
    return {path: buffer for path, buffer in module.named_buffers() if path in stored}


def empty(module: nn.Module) -> None:
    """Move every parameter of `module` to the meta device, which frees its memory."""
    for path, parameter in list(module.named_parameters()):
        set_parameter(module, path, torch.empty_like(parameter, device="meta"))


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move computed tables, such as rotary frequencies, to the device of the weights."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)


class Recorder(nn.Module):
    """Replaces a block. A call stores its input and arguments. It returns `inject`, or the input if that is None."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.__dict__["block"] = block  # not registered as a submodule, so that its weights are not listed here
        self.kwargs: dict[str, Any] = {}
        self.input: Tensor | None = None
        self.inject: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args:
            raise BadValueError(
                f"{type(self.__dict__['block']).__name__}: {len(args)} positional arguments are not supported"
            )
        self.input, self.kwargs = hidden_states, kwargs
        return hidden_states if self.inject is None else self.inject


class BlockModel:
    """A causal LM with one block in memory at a time. Embedding, final norm and head are loaded on demand.

    With `prefetch`, a thread reads the next block of `in_order` while one is in use, so memory holds two blocks. The
    default is True on a GPU. It is False on a CPU, where memory is scarcer than time.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: Weights,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        prefetch: bool | None = None,
    ):
        self.source, self.dtype, self.device = weights, dtype, torch.device(device)
        self.prefetch = self.device.type == "cuda" if prefetch is None else prefetch
        self.model = make_skeleton(config)
        move_buffers(self.model, self.device)
        self.family = find_family(self.model.config.model_type)
        self.layers_path, layers = find_blocks(self.model)
        self._blocks = list(layers)
        self._recorders = [Recorder(block) for block in layers]
        for i, recorder in enumerate(self._recorders):
            layers[i] = recorder
        self._kwargs: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.tied = bool(self.model.config.tie_word_embeddings)

    def __len__(self) -> int:
        return len(self._blocks)

    def weights(self, name: str) -> Tensor:
        """The parameter `name`, in its stored dtype, on this model's device."""
        return self.source(name).to(self.device)

    def name(self, index: int) -> str:
        """The path of block `index`, such as "model.layers.3"."""
        return f"{self.layers_path}.{index}"

    @property
    def embedding_name(self) -> str:
        return next(n for n, m in self.model.named_modules() if m is self.model.get_input_embeddings()) + ".weight"

    @property
    def head_name(self) -> str:
        return self.embedding_name if self.tied else "lm_head.weight"

    @contextmanager
    def embedding_and_norm(self, *, head: bool = False) -> Iterator[None]:
        """Context with the embedding and the final norm in memory. With `head`, the head is in memory too.

        The embedding keeps its stored dtype.
        """
        embedding = self.model.get_input_embeddings()
        table = self.weights(self.embedding_name)
        set_parameter(embedding, "weight", table)
        norm = [m for n, m in self.model.base_model.named_children() if n != "layers" and m is not embedding]
        try:
            for module in norm:
                name = next(n for n, m in self.model.named_modules() if m is module)
                fill(module, f"{name}.", self.weights, self.dtype)
            if head:
                out = self.model.get_output_embeddings()
                set_parameter(out, "weight", self.weights(self.head_name).to(self.dtype))
            yield
        finally:
            empty(self.model)

    def embed(self, ids: Tensor) -> Tensor:
        """The first block's input (batch, seq, hidden) for ids (batch, seq). Needs an open `embedding_and_norm`."""
        hidden = self.model.get_input_embeddings()(ids.to(self.device)).to(self.dtype)
        self.model.base_model(inputs_embeds=hidden, use_cache=False)
        batch, seq_len = ids.shape
        self._kwargs.setdefault((batch, seq_len), [recorder.kwargs for recorder in self._recorders])
        hidden = self._recorders[0].input
        assert hidden is not None
        self._forget()
        return hidden

    def prepare(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Record the arguments of every block for each shape (batch, seq_len). `runner` needs them.

        `embed` already does this for the shape of its ids. Needs an open `embedding_and_norm`.
        """
        for batch, seq_len in shapes:
            self.embed(torch.zeros(batch, seq_len, dtype=torch.long))

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits (batch, seq, vocab) for states (batch, seq, hidden) after the last block.

        Needs an open `embedding_and_norm(head=True)`.
        """
        self._recorders[-1].inject = hidden
        try:
            return self.model(inputs_embeds=hidden, use_cache=False).logits
        finally:
            self._forget()

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the final norm to states (batch, seq, hidden) after the last block. The result is the head's input."""
        self._recorders[-1].inject = hidden
        try:
            return self.model.base_model(inputs_embeds=hidden.detach(), use_cache=False).last_hidden_state
        finally:
            self._forget()

    def runner(self, block: Block, index: int) -> Callable[[Tensor], Tensor]:
        """The block as a function of states (batch, seq, hidden).

        `embed` or `prepare` must have been called with the same (batch, seq) before.
        """

        def run(hidden: Tensor) -> Tensor:
            batch, seq_len = hidden.shape[:2]
            output = block.module(hidden.to(self.device, self.dtype), **self._kwargs[batch, seq_len][index])
            return output[0] if isinstance(output, tuple) else output

        return run

    def read(self, ids: Tensor, states: Tensor, size: int, done: Callable[[int], None] = lambda index: None) -> None:
        """Write the states after the last block into `states` (n, seq, hidden), for token ids (n, seq).

        Each block runs on all windows before the next one is loaded. `size` windows run at a time; their number changes
        the speed, never the result. `done` is called with the index of each finished block.
        """
        with self.embedding_and_norm():
            for part, place in zip(ids.split(size), states.split(size), strict=True):
                place.copy_(self.embed(part))
        for index, block in self.in_order():
            run = self.runner(block, index)
            for place in states.split(size):
                place.copy_(run(place))  # `place` is a view, so this overwrites the states in place
            done(index)

    @torch.no_grad()
    def nll(self, ids: Tensor, skip: int, vocabulary: int | None = None) -> float:
        """Mean nll of ids[:, skip:] in nats, for ids (batch, seq). A token is predicted from all tokens before it.

        Only the first `vocabulary` tokens can be predicted. None means all tokens of the head.
        """
        with self.embedding_and_norm():
            hidden = self.embed(ids)
        for index, block in self.in_order():
            hidden = self.runner(block, index)(hidden)
        with self.embedding_and_norm():
            head = self.weights(self.head_name)[:vocabulary]
            pairs = zip(hidden.split(HEAD_WINDOWS), ids.split(HEAD_WINDOWS), strict=True)
            return torch.cat([self._head_nll(states, part, skip, head) for states, part in pairs]).mean().item()

    def _head_nll(self, hidden: Tensor, ids: Tensor, skip: int, head: Tensor) -> Tensor:
        """The nll of each token of ids[:, skip:], from the states after the last block.

        HEAD_ROWS rows of `head` are in memory at a time.
        """
        out, totals, target_logits = self.model.get_output_embeddings(), [], []
        targets = ids[:, skip:, None].to(self.device)
        for start in range(0, len(head), HEAD_ROWS):
            part = head[start : start + HEAD_ROWS]
            set_parameter(out, "weight", part.to(self.dtype))
            logits = self.logits(hidden)[:, skip - 1 : -1].float()
            totals.append(logits.logsumexp(-1))
            inside = (targets >= start) & (targets < start + len(part))
            target_logits.append((logits.gather(-1, (targets - start).clamp(0, len(part) - 1)) * inside)[..., 0])
        return torch.stack(totals).logsumexp(0) - torch.stack(target_logits).sum(0)

    @contextmanager
    def block(self, index: int, stored: dict[str, Tensor] | None = None) -> Iterator[Block]:
        """Context with block `index` in memory. Its weights are read from disk, or taken out of `stored`."""
        module, name = self._blocks[index], self.name(index)
        source = self.weights if stored is None else lambda path: stored.pop(path).to(self.device)
        fill(module, f"{name}.", source, self.dtype, small_experts=True)
        linears, family = find_linears(module), self.family
        modules = {path.rpartition(".")[0] for path, _ in module.named_parameters()}
        try:
            if family is None:
                yield Block(name, module, linears, None)
            else:
                linears = {path: linear for path, linear in linears.items() if not family.skips(path)}
                yield Block(name, module, linears, family.stages_in(modules), family.experts_in(modules))
        finally:
            empty(module)

    def in_order(self, first: int = 0) -> Iterator[tuple[int, Block]]:
        """Every block from `first` on, with its index. A block is released before the next one is loaded."""
        with ThreadPoolExecutor(1) as reader:
            next_block = None
            for index in range(first, len(self)):
                stored = next_block.result() if next_block else None
                more = self.prefetch and index + 1 < len(self)
                next_block = reader.submit(self._read, index + 1) if more else None
                with self.block(index, stored) as block:
                    yield index, block

    def _read(self, index: int) -> dict[str, Tensor]:
        """All parameters of a block by name, in their stored dtype. For a GPU, they are in pinned memory."""
        block = self._blocks[index]
        paths = [*(path for path, _ in block.named_parameters()), *stored_buffers(block)]
        tensors = {f"{self.name(index)}.{path}": self.source(f"{self.name(index)}.{path}") for path in paths}
        if self.device.type == "cpu":
            return tensors
        return {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in tensors.items()}

    def _forget(self) -> None:
        for recorder in self._recorders:
            recorder.input = recorder.inject = None


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks, and its path in the model.

    Raises ValueError if the model has no list with one module per hidden layer.
    """
    count = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise BadValueError(f"{type(model).__name__}: the model has no list of {count} decoder blocks")


def find_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Every nn.Linear of a block, by its path inside the block."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def skeleton_shapes(config: dict[str, Any]) -> ModelShapes:
    """The shapes of a causal LM of any type, from transformers' own code.

    Raises ValueError if transformers cannot build it, or if it has no list of blocks.
    """
    model = make_skeleton(config)
    path, layers = find_blocks(model)
    names = {module: name for name, module in model.named_modules()}
    table = model.get_input_embeddings()
    rows, width = table.get_parameter("weight").shape
    linears = {
        f"{path}.{i}.{name}": linear for i, block in enumerate(layers) for name, linear in find_linears(block).items()
    }
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    parameters = dict(model.named_parameters()) | stored_buffers(model)
    model_type = model.config.model_type
    return ModelShapes(
        model_type,
        {name: tuple(parameter.shape) for name, parameter in parameters.items()},
        {name: Linear(one.out_features, one.in_features, one.bias is not None) for name, one in linears.items()},
        Vocabulary(
            names[table],
            names.get(model.get_output_embeddings(), "lm_head"),
            rows,
            width,
            bool(model.config.tie_word_embeddings),
        ),
        tuple(f"{path}.{i}" for i in range(len(layers))),
        frozenset(model.state_dict()),
        tuple(pattern for pattern in patterns if isinstance(pattern, str)),
        bool(get_checkpoint_conversion_mapping(model_type)) and find_family(model_type) is None,
    )


def load_all(config: dict[str, Any], weights: Weights, dtype: torch.dtype) -> PreTrainedModel:
    """The causal LM in eval mode, with all weights in memory in `dtype`."""
    model = make_skeleton(config)
    fill(model, "", weights, dtype)
    model.tie_weights()
    return model
