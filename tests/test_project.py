"""The rules of the project that no other tool checks: light import, layers, size of files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spem

ROOT = Path(spem.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
# The package's own `__init__` ("") stands above what it exports.
LAYERS = (
    "cli",
    "commands",
    "report",
    "report_page",
    "report_figures",
    "report_tables",
    "significance",
    "published",
    "compare",
    "grid",
    "board",
    "costs",
    "launch",
    "records",
    "study",
    "cells",
    "bench",
    "bench_report",
    "bench_targets",
    "bench_table",
    "bench_loop",
    "bench_memory",
    "bench_runs",
    "bench_operations",
    "bench_networks",
    "bench_measure",
    "bench_cases",
    "bench_imagenet",
    "flags",
    "tables",
    "search",
    "train",
    "replicas",
    "job",
    "turns",
    "loop",
    "steps",
    "devices",
    "metrics",
    "optimizer",
    "checkpoint",
    "data",
    "batches",
    "cifar",
    "recipes",
    "",
    "convert",
    "deploy",
    "fold",
    "constancy",
    "supernet",
    "attach",
    "backbone",
    "models",
    "pretrained",
    "slots",
    "norm",
    "head",
    "gates",
    "functional",
    "kernels",
    "extras",
    "choices",
)


def layer(path: Path) -> str:
    """Return the first name below `spem` of a module's file: "gates" for gates/spem.py."""
    return path.relative_to(ROOT).with_suffix("").parts[0].replace("__init__", "")


def imported_layers(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "spem":
                first = rest.partition(".")[0]
                yield first if first in LAYERS else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward(path):
    own = LAYERS.index(layer(path))
    for other in imported_layers(path):
        assert LAYERS.index(other) >= own, f"{path.name} must not import spem.{other}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


def test_import_brings_in_torch_and_nothing_heavier():
    program = (
        "import sys, torch; before = set(sys.modules); import spem;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    packages = set(run.stdout.split()) - sys.stdlib_module_names
    assert packages <= {"spem", "torch", "numpy"}
