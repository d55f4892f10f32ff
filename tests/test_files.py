"""Files that are written whole or not at all."""

import os

import pytest

from spem._files import atomically, write_text


def half_a_write(path):
    path.write_text("half")
    raise OSError("disk full")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), atomically(path) as temporary:
        half_a_write(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    path, link = tmp_path / "real.csv", tmp_path / "link.csv"
    path.write_text("old")
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"  # as /dev/stdout and /dev/null, which no test may touch
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(IsADirectoryError), atomically(tmp_path):
        pytest.fail("the work would be lost")
    with pytest.raises(FileNotFoundError, match=r"none'$"), atomically(tmp_path / "none" / "x"):
        pytest.fail("the work would be lost")
