"""YAML files of settings: what is endless, too large or no mapping is refused at once."""

import time

import pytest

from spem._yaml import parse_yaml, read_text
from spem.cli import main
from spem.compare.records import read_study

BILLION = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases": (BILLION, "has the alias *a: write the value out"),
    "a value in itself": ("a: &a [*a]\n", "has the alias *a"),
    "merged keys": ("a: &a {b: 1}\nc: {<<: *a}\n", "has the alias *a"),
    "nested lists": ("a: " + "[" * 100_000, "is nested more than 20 deep"),
    "nested mappings": ("a: " + "{a: " * 1000 + "}" * 1000, "is nested more than 20 deep"),
    "nested dashes": ("- " * 5000 + "x", "is nested more than 20 deep"),
    "a Python object": ("a: !!python/object/apply:os.system [touch marker]\n", "is no valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "is no valid YAML"),
    "a text": ("hello", "must hold one `key: value` a line"),
    "nothing": ("", "must hold one `key: value` a line"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_text_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, message = HOSTILE[kind]
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"mine\.yaml") as caught:
        parse_yaml(text, "mine.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.perf_counter() - start < 2
    assert not (tmp_path / "marker").exists()


def test_files_that_are_too_large_or_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(ValueError, match="has more than 65,536 bytes"):
        read_text(path, "mine.yaml")
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match="is no valid YAML"):
        read_text(path, "mine.yaml")


@pytest.mark.parametrize("command", ["train --config", "compare --out x --study"])
def test_the_commands_refuse_a_bomb_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.yaml").write_text(BILLION)
    assert main([*command.split(), "bomb.yaml"]) == 2
    assert "bomb.yaml has the alias *a" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.yaml"]


def test_the_study_of_a_comparison_is_read_in_the_same_way(tmp_path):
    (tmp_path / "study.yaml").write_text(BILLION)
    with pytest.raises(ValueError, match=r"study\.yaml has the alias"):
        read_study(tmp_path)
