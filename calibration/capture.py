"""Observe the inputs of modules with hooks that exist only inside a context."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn


@contextmanager
def watch_inputs(modules: Mapping[str, nn.Module], update: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Context in which `update(name, input)` is called before every forward pass of each module.

    `input` is the module's first tensor argument, positional or by keyword, detached from the graph. It is not
    copied, so `update` must not write to it. All hooks are removed when the context closes, also after an error.
    """

    def observe(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        update(name, _first_tensor(name, args, kwargs).detach())

    with ExitStack() as hooks:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(partial(observe, name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _first_tensor(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise ValueError(
        f"{name}: called without a tensor, with {len(args)} positional arguments and the keywords {sorted(kwargs)}"
    )
