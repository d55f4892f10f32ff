"""What is built and installed is whole: the sdist builds the wheel, and the wheel alone trains."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.install


def package_data() -> set[str]:
    """The files of the package that are no modules: recipes, studies, templates, weights, C++ …"""
    files = (ROOT / "src").rglob("*")
    return {
        str(path.relative_to(ROOT / "src"))
        for path in files
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }


def run(*words: str | Path, cwd: Path) -> str:
    """Run a program without this checkout on its path."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.check_output(words, cwd=cwd, env=clean, text=True)


def build(kind: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel, built from the sdist alone."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_every_file_of_the_package_is_in_the_sdist_and_in_the_wheel(sdist, wheel):
    with tarfile.open(sdist) as archive:
        in_sdist = {"/".join(PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    files = package_data()
    assert {"spem/train/recipes/digits.yaml", "spem/kernels/cpu/native.cpp"} <= files
    assert {f"src/{name}" for name in files} <= in_sdist
    assert files <= in_wheel
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert modules <= in_wheel
    assert {name for name in in_wheel if name.endswith(".py")} == modules


def test_the_installed_wheel_trains_and_finds_its_files(wheel, tmp_path):
    """In an environment of its own, which shares nothing but the dependencies with this one."""
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    words = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *words, cwd=tmp_path)
    # Paths in a .pth file are searched, but the .pth files there, such as that of an editable
    # install, are not read.
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    (Path(own.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    where = run(python, "-c", "import spem; print(spem.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "env")

    spem = python.with_name("spem")
    words = ("--epochs", "1", "--no-progress", "--threads", "1", "--out", "run")
    assert "test top-1" in run(spem, "train", "--config", "digits", *words, cwd=tmp_path)
    program = """
import spem
from spem.compare.study import study_names
from spem.train import recipe_names
print(len(recipe_names()), len(study_names()))
spem.create_model("resnet20", gate="eca", pretrained="cifar10")
"""
    assert run(python, "-c", program, cwd=tmp_path) == "5 7\n"
