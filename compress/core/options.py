"""Describe each setting once: a dataclass field also describes its command-line option and its recipe key.

`option()` makes the field. `compress.cli.options` turns fields into click options, and `compress.recipe` turns them
into recipe keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from compress.core.errors import BadValueError

METADATA = "option"
KINDS: dict[type, tuple[tuple[type, ...], str]] = {  # type of a setting -> types of its values, and their name
    bool: ((bool,), "True or False"),
    int: ((Integral,), "an integer"),
    float: ((Real,), "a number"),
    str: ((str, PathLike), "a text"),
}
DEVICES = ("auto", "cpu", "cuda")  # the first is the default
DEVICE_HELP = "Device that runs the model. auto: a GPU if torch finds one, else the CPU."


@dataclass(frozen=True)
class Option:
    """How one setting looks to a user.

    `group` is the help section. `minimum` and `maximum` are inclusive bounds of a number; `above` and `below` are
    exclusive bounds. `flag` replaces the option's name (`"--sym/--asym"`). `default_text` is shown as the default if
    the default is None. `flag_value` is used if the command line gives the option without a value. `parse` turns text
    into the field's value, and raises ValueError for text that it cannot read.
    """

    help: str
    group: str = "Essentials"
    choices: Sequence[str | int] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    flag: str | None = None
    short: str | None = None
    metavar: str | None = None
    default_text: str | None = None
    flag_value: Any = None
    parse: Callable[[str], Any] | None = None
    is_path: bool = False


def option(default: Any, help: str, **settings: Any) -> Any:
    """A dataclass field with this default. `help` and `settings` become its `Option`."""
    return field(default=default, metadata={METADATA: Option(help, **settings)})


def device_setting() -> Any:
    """The field `device`, for every settings class whose command loads a model."""
    return option(DEVICES[0], DEVICE_HELP, group="Resources", choices=DEVICES)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class: a value of `type`, or with `repeats` a tuple of such values."""

    name: str
    type: Any
    repeats: bool
    default: Any
    option: Option


def settings_of(config: type) -> list[Setting]:
    """The settings of a dataclass: its fields that `option` made, in the same order."""
    hints = get_type_hints(config)
    return [make_setting(one, hints[one.name]) for one in fields(config) if METADATA in one.metadata]


def make_setting(one: Field[Any], hint: Any) -> Setting:
    """The Setting of a dataclass field. `hint` is the field's type.

    `type` is X for the hints `X`, `X | None` and `tuple[X, ...]`. `repeats` is True for a tuple.
    """
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    repeats = get_origin(hint) is tuple
    return Setting(one.name, get_args(hint)[0] if repeats else hint, repeats, one.default, one.metadata[METADATA])


def check_value(setting: Setting, value: Any) -> Any:
    """The value of a setting. Text is parsed as on the command line.

    Raises BadValueError, with the name, if the type is wrong, or if the value is no choice or outside of the bounds.
    """
    if value is None and setting.default is None:
        return None
    if setting.option.parse is not None and isinstance(value, str):
        return setting.option.parse(value)
    if setting.type is Path and isinstance(value, str):
        return Path(value)
    for part in value if setting.repeats and isinstance(value, list | tuple) else (value,):
        problem = type_problem(setting, part) or bounds_problem(setting.option, part)
        if problem:
            raise BadValueError(f"{setting.name}={part!r}: must be {problem}")
    return value


def type_problem(setting: Setting, value: Any) -> str | None:
    """What the value must be, if its type is wrong. A boolean is no number."""
    types, name = KINDS.get(setting.type, ((object,), ""))
    wrong = not isinstance(value, types) or (isinstance(value, bool) and setting.type in (int, float))
    return name if wrong else None


def bounds_problem(option: Option, value: Any) -> str | None:
    """What the value must be, if it is no choice or outside of the bounds."""
    if option.choices and option.parse is None and value not in option.choices:
        return f"one of {', '.join(map(str, option.choices))}"
    bounds = [
        (option.minimum, lambda bound: value >= bound, "at least"),
        (option.maximum, lambda bound: value <= bound, "at most"),
        (option.above, lambda bound: value > bound, "above"),
        (option.below, lambda bound: value < bound, "below"),
    ]
    return next((f"{word} {bound:g}" for bound, holds, word in bounds if bound is not None and not holds(bound)), None)
