"""Make language models smaller: distill, quantize, convert, check, verify, compare, ship.

    from compress import quantize, verify

    quantize("Qwen/Qwen2.5-1.5B-Instruct", "qwen-awq")
    print(verify("Qwen/Qwen2.5-1.5B-Instruct", "qwen-awq")["kl"])

The functions are those of `compress.api`, imported at first use: `import compress` loads neither torch nor
transformers. Errors that a user can cause are a QCompressError.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.api import GateFailure as GateFailure
    from compress.api import QCompressError as QCompressError
    from compress.api import check as check
    from compress.api import compare as compare
    from compress.api import convert as convert
    from compress.api import distill as distill
    from compress.api import quantize as quantize
    from compress.api import ship as ship
    from compress.api import verify as verify

FUNCTIONS = ("check", "compare", "convert", "distill", "quantize", "ship", "verify")
__all__ = ["GateFailure", "QCompressError", "check", "compare", "convert", "distill", "quantize", "ship", "verify"]


def __getattr__(name: str) -> Any:
    """A function or an error of `compress.api` (PEP 562)."""
    if name in __all__:
        return getattr(import_module("compress.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class CallablePackage(ModuleType):
    """A package that can be called like a function: `compress.quantize(...)` calls `compress.api.quantize(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module("compress.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


class Root(ModuleType):
    """Type of this package. Importing compress.quantize or compress.distill keeps it callable, as `CallablePackage`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FUNCTIONS and isinstance(value, ModuleType):
            value.__class__ = CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = Root
