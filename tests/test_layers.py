"""Imports point down only, and rooms of one rank never import each other. CONTRIBUTING shows the same table."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS: list[tuple[int, tuple[str, ...]]] = [  # rank, rooms; the longest matching prefix decides
    (7, ("compress.cli", "compress.api")),
    (6, ("compress.pipeline", "compress.serve", "compress.ship")),
    (
        5,
        (
            "compress.quantize.job",
            "compress.quantize.auto",
            "compress.distill.job",
            "compress.distill.generate",
            "compress.evaluate",
            "compress.backends",
            "compress.recipe",
        ),
    ),
    (4, ("compress.quantize", "compress.distill", "compress.runtimes", "compress.ship.gguf", "compress.ship.source")),
    (3, ("compress.checkpoint",)),
    (2, ("compress.model",)),
    (1, ("compress.core", "compress.losses", "compress.sandbox")),
    (0, ("calibration",)),
]
RANK = {name: rank for rank, names in LAYERS for name in names}
FILES = sorted(path for top in ("compress", "calibration") for path in (ROOT / top).rglob("*.py"))
DRIVERS = ROOT / "compress" / "backends" / "drivers"  # scripts that run in other environments
TRANSFORMERS = {"compress.model", "compress.checkpoint"}


def room(module: str) -> str:
    """The longest name of LAYERS that `module` begins with: 'compress.quantize.methods.gptq' -> 'compress.quantize'."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in RANK), module)


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in a file, those inside functions too."""
    modules: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return modules


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    importer = room(module_of(path))
    if importer == "compress":
        return
    for line, module in imports(path):
        if module.split(".")[0] in ("compress", "calibration"):
            used = room(module)
            same_room = used.split(".")[:2] == importer.split(".")[:2] and RANK[used] == RANK[importer]
            assert same_room or RANK[used] < RANK[importer], f"line {line}: {importer} may not import {used}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_model_and_checkpoint_import_transformers(path):
    used = [module for _, module in imports(path) if module.split(".")[0] == "transformers"]
    assert not used or path.parent == DRIVERS or room(module_of(path)) in TRANSFORMERS, used


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_pack_shifts_bits(path):
    shifts = [
        n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.LShift | ast.RShift)
    ]
    allowed = {"compress.core.pack", "compress.runtimes.cpu_kernel"}  # the kernel reads vLLM's words, not ours
    assert not shifts or module_of(path) in allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_cli_prints(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    prints = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not prints or module_of(path).startswith("compress.cli")


def sub_room(module: str) -> str | None:
    """The folder two levels deep that holds a module: compress.quantize.methods for compress.quantize.methods.gptq."""
    parts = module.split(".")
    folder = ROOT.joinpath(*parts[:3])
    return ".".join(parts[:3]) if len(parts) > 3 and folder.is_dir() else None


def test_no_two_rooms_import_each_other_both_ways():
    arrows = {
        (sub_room(module_of(path)), sub_room(module))
        for path in FILES
        for _, module in imports(path)
        if module.startswith("compress.")
    }
    rooms = {(a, b) for a, b in arrows if a and b and a != b}
    assert not {(a, b) for a, b in rooms if (b, a) in rooms}


def test_every_class_name_is_defined_once():
    names = [node.name for path in FILES for node in nodes(path) if isinstance(node, ast.ClassDef)]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_functions_are_short():
    functions = [node for path in FILES for node in nodes(path) if isinstance(node, ast.FunctionDef)]
    lengths = [node.end_lineno - node.lineno + 1 for node in functions]
    assert statistics.median(lengths) <= 8
    assert [node.name for node, length in zip(functions, lengths, strict=True) if length > 50] == []


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_test_names_are_short_and_programs_in_them_do_not_speak():
    speech = {"told", "wound", "asked", "judge", "says", "knows", "lends"}
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    functions = [
        (path.name, node.name)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    names = [(file, name.removeprefix("test_")) for file, name in functions if name.startswith("test_")]
    assert not [(file, name) for file, name in names if len(name) > 70 or speech & set(name.split("_"))]


@pytest.mark.parametrize("path", sorted(DRIVERS.glob("*.py")), ids=lambda p: p.name)
def test_drivers_import_nothing_of_qcompress(path):
    assert not [module for _, module in imports(path) if module.split(".")[0] in ("compress", "calibration")]
