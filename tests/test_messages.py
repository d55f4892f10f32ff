"""The sentences that every part of the package shares."""

import json
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from spem import _extras
from spem._extras import install_command, needs_extra
from spem._messages import describe_error, not_found, unknown


def test_few_names_are_listed_whole_and_of_many_the_nearest():
    few = [f"pool{i}" for i in range(6)]
    assert str(unknown("pool", "pool3x", few)).count("pool") == 8
    many = unknown("gate", "spme", ["spem", "se", "eca", "srm", "gct", "ie", "cbam"])
    assert str(many) == "unknown gate 'spme'; known: spem, se, srm, …; `spem gates` lists all"
    other = unknown("row", "x", "abcdefg", "spem compare --help")
    assert str(other).endswith("…; `spem compare --help` lists all")
    assert str(unknown("row", "x", "abcdefg")).endswith("a, b, c, … (7 in all)")


def test_errors_of_the_operating_system_name_their_path(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "a" / "b.txt").read_text()
    assert describe_error(missing.value) == f"there is no file or folder {tmp_path / 'a' / 'b.txt'}"
    with pytest.raises(IsADirectoryError) as folder:
        tmp_path.read_text()
    assert describe_error(folder.value) == f"is a directory: {tmp_path}"
    assert describe_error(OSError("no\n  path")) == "no path"


def test_a_folder_that_is_missing_is_called_missing(tmp_path):
    assert (
        str(not_found(tmp_path, "run", "x.yaml")) == f"{tmp_path} holds no run: x.yaml is missing"
    )
    absent = tmp_path / "absent"
    assert str(not_found(absent, "run", "x.yaml")) == f"there is no folder {absent}"


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (None, "pip install 'spem[train]'"),
        (
            {"url": "file:///my%20code/spem", "dir_info": {"editable": True}},
            "pip install -e '/my code/spem[train]'",
        ),
        ({"url": "file:///code/spem", "dir_info": {}}, "pip install '/code/spem[train]'"),
        (
            {"url": "file:///wheels/spem-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install '/wheels/spem-0.1.0-py3-none-any.whl[train]'",
        ),
        (
            {"url": "https://example.org/spem.git", "vcs_info": {"vcs": "git"}},
            "pip install 'spem[train] @ git+https://example.org/spem.git'",
        ),
    ],
)
def test_the_install_command_is_that_of_the_installation(monkeypatch, record, command):
    text = record and json.dumps(record)
    found = SimpleNamespace(read_text={"direct_url.json": text}.get)
    monkeypatch.setattr(_extras, "distribution", lambda _: found)
    assert install_command("train") == command


def test_a_checkout_that_is_not_installed_names_itself(monkeypatch, request):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_extras, "distribution", missing)
    assert install_command("train") == f"pip install -e '{request.config.rootpath}[train]'"


def test_a_torchvision_of_another_torch_is_named():
    sentence = r"torchvision does not fit torch .*pip uninstall"
    with pytest.raises(ImportError, match=sentence), needs_extra("train"):
        raise RuntimeError("operator torchvision::nms does not exist")
    with pytest.raises(RuntimeError, match="another"), needs_extra("train"):
        raise RuntimeError("another error")
