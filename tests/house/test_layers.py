"""The layer rule: a file imports only from layers below it (CONTRIBUTING.md).

Imports are read from the syntax tree, so that lazy and type-checking ones count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The first name below `mtlfast` -> the first names it may import. Its own name goes without saying.
# Leaves are tiny files that know nothing but other leaves; `bare` ones need only torch and NumPy.
BARE = {"bags", "jagged", "errors", "dtypes", "_version"}
NATIVE = {"_C", "_extension", "_ranges"}
LEAVES = BARE | {"_config", "_checks", "_ranking"}
BLOCKS = {"heads", "sequence", "interactions"}
BELOW_MODELS = LEAVES | {"ops", "nn"} | BLOCKS
BELOW_TOP = BELOW_MODELS | {"models", "data"}
FUSING = {"fuse", "fusions"}
BELOW_CLI = BELOW_TOP | NATIVE | {"reference", "kernels", "training", "analysis", "env"} | FUSING
EVERYTHING = BELOW_CLI | {"commands", "__init__"}

MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "_C": set(),
    "_checkout": set(),
    "_extension": {"_C"},
    "_ranges": {"_extension"},
    "env": {"_extension", "_version"},
    "reference": BARE,
    "kernels": set(),
    "data": LEAVES | {"_ranges"},
    "ops": LEAVES | {"reference", "kernels", "_extension"},
    "nn": LEAVES | {"ops"},
    **{block: LEAVES | {"ops", "nn"} for block in BLOCKS},
    "models": BELOW_MODELS,
    "training": BELOW_TOP | {"env", "_version"},
    "analysis": BELOW_TOP,
    "fusions": BELOW_TOP,
    "fuse": BELOW_TOP | {"fusions"},
    "commands": EVERYTHING,
    "cli": EVERYTHING,
    "__main__": {"cli"},
    # The package itself imports only what is light; everything else is found on first use.
    "__init__": {"_checkout", "_extension", "_version", "env"},
}
# What `from mtlfast import name` means where the name is not a submodule.
PUBLIC_NAMES = {
    "FuseReport": "fuse",
    "JaggedSequences": "jagged",
    "__version__": "_version",
    "checks": "ops",
    "explain": "ops",
    "fuse_": "fuse",
    "register_fusion": "fuse",
    "unfuse_": "fuse",
}


def package_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(module name, file) of everything that installs as part of mtlfast."""
    for folder, prefix in ((root / "mtlfast", "mtlfast"), (root / "kernels", "mtlfast.kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = [prefix, *file.relative_to(folder).with_suffix("").parts]
            yield ".".join(parts), file


def imported(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, first name below mtlfast) of every import of this package in one file."""
    parents = module.split(".")
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*parents[: -node.level], *([base] if base else [])])
            names = [f"{base}.{a.name}" for a in node.names] if base == "mtlfast" else [base]
        elif isinstance(node, ast.Call) and _called_name(node) in ("import_module", "__import__"):
            names = [
                a.value
                for a in node.args[:1]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "mtlfast":
                yield node.lineno, rest.split(".")[0] or "__init__"


def _called_name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def violations(root: Path) -> list[str]:
    found = []
    for module, file in package_files(root):
        layer = ([*module.split("."), "__init__"])[1]
        where = file.relative_to(root)
        if layer not in MAY_IMPORT:
            found.append(f"{where}: {layer!r} is in no layer; give it one in {Path(__file__).name}")
            continue
        allowed = MAY_IMPORT[layer] | {layer}
        for line, name in imported(module, ast.parse(file.read_text(encoding="utf-8"))):
            name = PUBLIC_NAMES.get(name, name)
            if name not in allowed and layer != "__init__":
                found.append(f"{where}:{line}: {layer} may not import {name}")
            elif name not in allowed and not _is_type_checking(root / where, line):
                found.append(f"{where}:{line}: importing mtlfast would import {name}")
    return found


def _is_type_checking(file: Path, line: int) -> bool:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        and node.lineno < line <= (node.end_lineno or 0)
        for node in ast.walk(tree)
    )


def test_every_file_imports_only_from_layers_below_it():
    assert violations(ROOT) == []


def test_the_scan_sees_the_package():
    layers = {module.split(".")[1] for module, _ in package_files(ROOT) if "." in module}
    assert {"reference", "ops", "nn", "kernels", "data", "models"} <= layers


@pytest.mark.parametrize(
    ("file", "source", "text"),
    [
        ("mtlfast/reference/a.py", "from mtlfast.ops import x", "reference may not import ops"),
        ("mtlfast/reference/a.py", "import mtlfast", "reference may not import __init__"),
        ("mtlfast/reference/a.py", "from ..ops.b import x", "reference may not import ops"),
        ("mtlfast/reference/a.py", "from mtlfast._config import x", "may not import _config"),
        ("mtlfast/data/a.py", "def f():\n  import mtlfast.nn", "a.py:2: data may not import nn"),
        ("mtlfast/data/a.py", "from mtlfast import models", "data may not import models"),
        ("mtlfast/data/a.py", "from mtlfast import explain", "data may not import ops"),
        ("mtlfast/ops/a.py", "from mtlfast.nn import x", "ops may not import nn"),
        ("mtlfast/nn/a.py", "from mtlfast.heads import x", "nn may not import heads"),
        (
            "mtlfast/nn/a.py",
            "import importlib\nimportlib.import_module('mtlfast.models')",
            "models",
        ),
        ("mtlfast/models/a.py", "from mtlfast.training import x", "models may not import training"),
        ("kernels/a.py", "from mtlfast.jagged import x", "kernels may not import jagged"),
        ("mtlfast/surprise.py", "", "'surprise' is in no layer"),
        ("mtlfast/__init__.py", "from mtlfast.nn import x", "importing mtlfast would import nn"),
    ],
)
def test_a_violation_is_reported(tmp_path, file, source, text):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert len(found := violations(tmp_path)) == 1
    assert text in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("mtlfast/reference/a.py", "import torch\nfrom mtlfast.jagged import x\nfrom . import b"),
        (
            "mtlfast/ops/a.py",
            "from mtlfast import JaggedSequences\nfrom mtlfast.reference import x",
        ),
        ("mtlfast/nn/a.py", "from mtlfast.ops import x\nfrom mtlfast.nn.b import y"),
        ("mtlfast/__init__.py", "if TYPE_CHECKING:\n    from mtlfast.jagged import x"),
    ],
)
def test_what_the_rule_allows(tmp_path, file, source):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert violations(tmp_path) == []
