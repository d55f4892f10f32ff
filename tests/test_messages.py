"""The sentences that every part of the package shares."""

import json
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spem import _extras
from spem._extras import install_command, needs_extra
from spem._messages import describe_error, not_found, printable, say, shorten, unknown


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (10**9, "1000000000"),
        (10**400, "a number of more than 300 digits"),
        ({"a": [[[1]]]}, "{'a': [[...]]}"),
        (torch.zeros(2, 3), "Tensor of shape (2, 3)"),
        ("\x1b[31m\udcff", "'\\x1b[31m\\udcff'"),
    ],
)
def test_values_are_shown_in_a_few_words(value, text):
    assert shorten(value) == text


def test_no_value_fills_a_message():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    endless = []
    endless.append(endless)
    texts = ["a" * 10**6, "\n" * 999, [["b" * 99] * 9] * 9, {"c" * 999: ["d" * 999] * 9}]
    numbers = [10**10_000, range(10**9), torch.zeros(9).numpy()]
    for value in [*texts, *numbers, Broken(), nn.Linear(1, 1), endless]:
        assert len(shorten(value)) <= 120
        assert shorten(value).isprintable()


def test_names_cannot_steer_a_terminal(capsys):
    say("[b]a\x1b[31m:+1:\r\x9b\u202e\udcff é 漢 👍")
    assert capsys.readouterr().out == "[b]a\\x1b[31m:+1:\\x0d\\x9b\\u202e\\xff é 漢 👍\n"
    assert printable("a\tb\nc\ud800") == "a\tb\nc\\ud800"


def test_a_name_of_a_million_letters_is_compared_by_its_first():
    assert len(str(unknown("gate", "x" * 10**6, ["spem", "se"]))) < 200
    assert "a number of more than 300 digits" in str(unknown("gate", 10**9999, ["spem", "se"]))
