"""The rules of the project that no other tool checks: light import, layers, size of files."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import spem

ROOT = Path(spem.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
# From top to bottom. "spem" is the package's own `__init__`; "_" stands for the private modules.
LAYERS = (
    "cli",
    "demo",
    "report",
    "compare",
    "train",
    "data",
    "spem",
    "export",
    "explain",
    "models",
    "surgery",
    "norm",
    "gates",
    "functional",
    "kernels",
    "_",
)


def layer(path: Path) -> str:
    """Return the layer of a file below `spem`: "gates" for gates/spem.py."""
    return _named(path.relative_to(ROOT).with_suffix("").parts[0])


def _named(first: str) -> str:
    if first == "__main__":
        return "cli"
    if first == "__init__" or (first not in LAYERS and not first.startswith("_")):
        return "spem"
    return "_" if first.startswith("_") else first


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
                yield _named(rest.partition(".")[0])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward(path):
    own = LAYERS.index(layer(path))
    for other in imported_layers(path):
        assert LAYERS.index(other) >= own, f"{path.name} must not import spem.{other}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


def test_the_package_shows_few_names():
    names = [path.name for path in ROOT.iterdir() if not path.name.startswith("_")]
    assert len([name for name in names if name != "py.typed"]) <= 16


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_modules_of_pytorch_are_imported_in_two_files(path):
    tree = ast.walk(ast.parse(path.read_text()))
    modules = [str(node.module) for node in tree if isinstance(node, ast.ImportFrom)]
    private = [name for name in modules if name.startswith("torch._")]
    assert not private or path in {ROOT / "kernels" / f"{n}.py" for n in ("inductor", "tracing")}


def test_import_is_light_until_a_name_is_used():
    program = (
        "import sys, spem; assert 'torch' not in sys.modules, 'torch';"
        "assert {*spem.__all__} <= {*dir(spem)};"
        "assert spem.norm.GatedBatchNorm2d is spem.GatedBatchNorm2d;"
        "assert spem.attach.__module__ == 'spem.surgery.attachment'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    for name in spem.__all__:
        assert getattr(spem, name) is getattr(spem, name)
    with pytest.raises(AttributeError, match="module 'spem' has no attribute 'atach'"):
        spem.atach  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_import_brings_in_torch_and_nothing_heavier():
    program = (
        "import sys, torch; before = set(sys.modules); from spem import *;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    packages = set(run.stdout.split()) - sys.stdlib_module_names
    assert packages <= {"spem", "torch", "numpy"}


def test_the_core_needs_pytorch_and_numpy_and_every_extra_has_its_code(request):
    """NumPy, because `import torch` warns without it."""
    text = (request.config.rootpath / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    core = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    assert core == {"numpy", "torch"}
    used = set(re.findall(r'needs_extra\("(\w+)"\)', "".join(p.read_text() for p in SOURCES)))
    # Whatever streams works without its extra, at a lower speed.
    assert {*project["optional-dependencies"]} == used | {"dev", "stream"}
