"""Command-line options. Most are generated from settings classes, and some are shared by several commands.

A command is declared with `cls=Command`. Its help lists the options of each `group` together.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from compress.cli.model_path import OutPath, check_models
from compress.core.cards import CARD_NAMES
from compress.core.options import DEVICE_HELP, DEVICES, Setting, settings_of

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C")
GROUPS = (
    "Essentials",
    "Student",
    "Layout",
    "Calibration",
    "Text",
    "Loss",
    "Schedule",
    "Stages",
    "Adapters",
    "Targets",
    "Tuning",
    "Tasks",
    "Measurement",
    "Prediction",
    "Limits",
    "Report",
    "Resources",
    "Run control",
)


VERBOSITY = {  # options that work before and after the command's name
    ("-q", "--quiet"): "Print no progress, only results and errors.",
    ("-v", "--verbose"): "Print every progress row in full.",
    ("--debug",): "Print the traceback of an error.",
}
TEXTS = ("text", "eval_text", "prompts")  # parameters that name text files
VERBOSITY_NAMES = ("quiet", "verbose", "debug")


class GroupedOption(click.Option):
    """A click option that belongs to one `group` of the help page."""

    def __init__(self, *args: Any, group: str = "Run control", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A command whose help lists options group by group. The options in VERBOSITY work too, but are not listed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [GroupedOption(flags, is_flag=True, hidden=True) for flags in VERBOSITY]

    def invoke(self, ctx: click.Context) -> Any:
        root = ctx.find_root()
        flags = {name: ctx.params.pop(name) for name in VERBOSITY_NAMES}
        if root is not ctx:
            root.params |= {name: value or root.params.get(name, False) for name, value in flags.items()}
            apply_verbosity(root)
        check_models(self, ctx.params)
        check_text_files(ctx.params)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(param, "group", GROUPS[-1]), []).append(record)
        for group in sorted(groups, key=group_order):
            with formatter.section(group):
                formatter.write_dl(groups[group])


def verbosity_options(function: F) -> F:
    """A decorator that adds the options in VERBOSITY."""
    for flags, help in reversed(VERBOSITY.items()):
        function = click.option(*flags, is_flag=True, help=help)(function)
    return function


def apply_verbosity(root: click.Context) -> None:
    """Set what stderr shows, as the parameters of `qcompress` request. Raises UsageError for -q together with -v."""
    from compress.cli.console import set_verbosity

    quiet, verbose = root.params["quiet"], root.params["verbose"]
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other; use one of them.")
    set_verbosity(quiet=quiet, verbose=verbose)


def group_order(group: str) -> int:
    """The position of a group on a help page. A group that GROUPS does not list comes before the last group."""
    return GROUPS.index(group) if group in GROUPS else len(GROUPS) - 1


class Parsed(click.ParamType):
    """The type of an option whose text `parse` reads. Its ValueError becomes a usage error that names the option."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def settings_options(*configs: type, skip: Iterable[str] = ()) -> Callable[[F], F]:
    """A decorator that adds one click option per field of the settings classes, except the fields named in `skip`.

    If two classes have a field of the same name, the first class defines the option.
    """
    settings = {setting.name: setting for config in reversed(configs) for setting in settings_of(config)}
    ordered = dict.fromkeys(setting.name for config in configs for setting in settings_of(config))

    def decorate(function: F) -> F:
        for name in reversed([name for name in ordered if name not in set(skip)]):
            function = click_option(settings[name])(function)
        return function

    return decorate


def click_option(setting: Setting) -> Callable[[F], F]:
    """The click option of one setting."""
    about = setting.option
    flag = about.flag or f"--{setting.name.replace('_', '-')}"
    names = [*([about.short] if about.short else []), flag, setting.name]
    settings: dict[str, Any] = {"help": about.help, "group": about.group, "default": setting.default}
    settings |= {"metavar": about.metavar} if about.metavar else {}
    if setting.default is dataclasses.MISSING:
        del settings["default"]
        settings["required"] = True
    elif setting.default not in (None, "", ()) and setting.default is not False:
        settings["show_default"] = True
    if about.default_text:
        settings["show_default"] = about.default_text
    if setting.repeats:
        settings["multiple"] = True
    if about.flag_value is not None:
        settings |= {"is_flag": False, "flag_value": about.flag_value}
    return click.option(*names, cls=GroupedOption, **settings, **value_type(setting))


def value_type(setting: Setting) -> dict[str, Any]:
    """The arguments of click.option that set the type of a value: `type`, or `is_flag` for a bool."""
    about = setting.option
    if about.parse is not None:
        choices = "|".join(map(str, about.choices))
        return {"type": Parsed(about.parse)} | ({"metavar": f"[{choices}]"} if choices else {})
    if about.choices:
        return {"type": click.Choice(list(about.choices))}
    if setting.type is bool:
        return {} if about.flag and "/" in about.flag else {"is_flag": True}
    if setting.name == "out":
        return {"type": OutPath(path_type=Path)}
    if about.is_path or setting.type is Path:
        return {"type": click.Path(path_type=Path if setting.type is Path else None)}
    if setting.type not in (int, float):
        return {"type": setting.type}
    bounds: dict[str, Any] = {"min": about.minimum, "max": about.maximum}
    if about.above is not None:
        bounds |= {"min": about.above, "min_open": True}
    if about.below is not None:
        bounds |= {"max": about.below, "max_open": True}
    if bounds["min"] is None and bounds["max"] is None:
        return {"type": setting.type}
    return {"type": (click.IntRange if setting.type is int else click.FloatRange)(**bounds)}


def check_text_files(values: Mapping[str, Any]) -> None:
    """Raises CalibrationError if a text or prompt file among the parameters is missing, before any long import."""
    for name in TEXTS:
        value = values.get(name) or ()
        for text in value if isinstance(value, tuple) else [str(value)]:
            check_text_file(text)


def check_text_file(text: str) -> None:
    """Raises CalibrationError if a text is a path, and there is no such file.

    Built-in names and datasets are not checked.
    """
    from calibration.corpus import check_source, parse_source
    from calibration.readers import is_file_name

    name = parse_source(text).name
    if is_file_name(name) and not Path(name).exists():
        check_source(text)


def make_settings(config: type[C], values: dict[str, Any]) -> C:
    """An instance of a settings class, from a command's parameters. Other parameters are ignored."""
    names = {one.name for one in dataclasses.fields(config)}  # type: ignore[arg-type]
    return config(**{name: value for name, value in values.items() if name in names})


def set_options() -> set[str]:
    """The names of the options that the user has set in the running command, defaults left out."""
    context = click.get_current_context()
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    return {name for name in context.params if context.get_parameter_source(name) not in default}


def check_hardware(hardware: str | None, dry_run: bool) -> None:
    """Raises UsageError if --hardware is used without --dry-run."""
    if hardware and not dry_run:
        raise click.UsageError("--hardware needs --dry-run")


def shared_option(*names: str, group: str, **settings: Any) -> Callable[[F], F]:
    """A decorator that adds an option to a `group` of the help page."""
    return click.option(*names, cls=GroupedOption, group=group, **settings)


def out_option(help: str, **settings: Any) -> Callable[[F], F]:
    """A decorator that adds the required option -o/--out: the path that the command writes."""
    kind = OutPath(path_type=Path, **settings)
    return shared_option("-o", "--out", group="Essentials", type=kind, required=True, help=help)


device_option = shared_option(
    "--device",
    group="Resources",
    type=click.Choice(DEVICES),
    default=DEVICES[0],
    show_default=True,
    help=DEVICE_HELP,
)
restart_option = shared_option(
    "--restart", group="Run control", is_flag=True, help="Discard the work of an interrupted run and begin again."
)
dry_run_option = shared_option(
    "--dry-run", group="Run control", is_flag=True, help="Print the plan without doing any work, then stop."
)
hardware_option = shared_option(
    "--hardware",
    group="Run control",
    type=click.Choice(CARD_NAMES),
    help="GPU for which --dry-run prints the memory by part, whether the job fits, and the least time.",
)
json_option = shared_option(
    "--json", "as_json", group="Run control", is_flag=True, help="Print the result as JSON on stdout."
)
