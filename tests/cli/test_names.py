"""Names of folders and classes are data: no command obeys what is written in them."""

import os
import re

import pytest
from PIL import Image

from spem.cli import main

NAMES = ["[bold]x", "$x^2$", "a\x1b[31mb", "c\nd", "<b>e", "f|g", 'h"i', "-j", "k" * 200]
NAMES += [os.fsdecode(b"caf\xe9"), "\x07l\r", ":+1:"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with images of classes with such names, in a folder with one."""
    home = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        (home / "ph\x1b[1moto" / name).mkdir(parents=True)
        for image in range(14):
            path = home / "ph\x1b[1moto" / name / f"\x1b[2J{image}.png"
            Image.new("RGB", (8, 8), (20 * number, 18 * image, 0)).save(path)
    return home


def test_no_command_shows_control_characters(home, monkeypatch, capfd):
    monkeypatch.chdir(home)
    data = "ph\x1b[1moto"
    recipe = [
        "--model",
        "resnet8",
        "--gate",
        "se",
        "--image-size",
        "8",
        "--validation",
        "none",
        "--epochs",
        "1",
    ]
    recipe += ["--threads", "1"]
    words = [
        ["data", data, "--out", "look"],
        ["train", "--data", data, *recipe, "--out", "r\x1b[1mun"],
        ["evaluate", "r\x1b[1mun"],
        ["predict", "r\x1b[1mun", data],
        ["predict", "r\x1b[1mun", data, "--csv", "a\x1b.csv"],
        ["gate-report", "r\x1b[1mun", "--fold", "9", "--out", "folded\x1b"],
        ["train", "--data", data, *recipe, "--out", "r\x1b[1mun"],  # refused
        ["evaluate", "no\x1b[1mrun"],
    ]
    for command in words:
        code = main(command)
        out, err = capfd.readouterr()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", out + err), command
        assert code == (2 if command[1].startswith("no") or command is words[6] else 0), err
    page = (home / "r\x1b[1mun" / "mistakes.html").read_text()
    assert "<b>e" not in page
    assert "\x1b" not in page


def test_names_in_tables_are_what_they_are(home, monkeypatch, capfd):
    monkeypatch.chdir(home)
    main(["data", "ph\x1b[1moto", "--out", "look"])
    shown = capfd.readouterr().out
    for text in ("[bold]x", "$x^2$", r"a\x1b[31mb", r"c\nd", "<b>e", "f|g", ":+1:"):
        assert text in shown
