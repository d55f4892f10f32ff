"""The live table of a comparison."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from spem.compare import progress
from spem.compare.planned import folder_of
from spem.compare.progress import Board
from spem.compare.records import make_failure
from spem.compare.study import Study


def finished(cell, accuracy, seconds):
    summary = {"final_test_top1": accuracy, "seconds": seconds}
    return make_failure(cell, "") | {"summary": summary, "error": None}


@pytest.fixture
def console(monkeypatch):
    """A terminal of 12 lines."""
    made = Console(file=io.StringIO(), force_terminal=True, width=100, height=12, color_system=None)
    monkeypatch.setattr(progress, "get_console", lambda: made)
    return made


@pytest.fixture
def cells():
    return Study(models="resnet8", gates=["none", "spem", "se", "eca"], seeds=2).cells(epochs=10)


def shown(console, cells, records, folder, running=(), jobs=1):
    with Board(cells, folder, records, jobs, live=True) as live:
        live.update([folder_of(folder, cell) for cell in running])
        console.file.truncate(0)
    return console.file.getvalue()


def test_it_counts_and_names_what_runs(console, cells, tmp_path):
    console.size = (100, 30)
    records = {cells[0].key: finished(cells[0], 0.9, 100.0)}
    records[cells[4].key] = finished(cells[4], 0.8, 100.0)
    records[cells[1].key] = make_failure(cells[1], "not finite")
    running = folder_of(tmp_path, cells[2])
    running.mkdir(parents=True)
    (running / "metrics.csv").write_text("epoch\n0\n1\n2\n")
    text = shown(console, cells, records, tmp_path, [cells[2]])
    assert "3 of 8 runs, 1 failed" in text
    assert "2/2  │ 85.00% ± 7.07%" in text
    assert "seed 0: 3/10" in text
    # 10 s an epoch, 50 epochs of which 3 are done.
    assert "about 8 min left" in text
    assert "about 4 min left" in shown(console, cells, records, tmp_path, [cells[2]], jobs=2)


def test_without_a_timed_epoch_nothing_is_estimated(console, cells, tmp_path):
    assert "left" not in shown(console, cells, {}, tmp_path)


def test_rows_that_do_not_fit_give_way_to_those_that_run(console, cells, tmp_path):
    text = shown(console, cells, {}, tmp_path, [cells[3]])
    assert "eca" in text
    assert "spem" not in text


def test_a_run_that_ends_has_its_line(console, cells, tmp_path):
    records = {cells[0].key: finished(cells[0], 0.9, 100.0)}
    with Board(cells, tmp_path, records, 1, live=False) as quiet:
        quiet.tell(cells[0], None)
        quiet.tell(replace_seed(cells[1]), "not finite")
    assert console.file.getvalue() == (
        "[1/8] none, resnet8, digits, seed 0: test top-1 90.00% after 100 s\n"
        "[1/8] spem, resnet8, digits, seed 9: failed: not finite\n"
    )


def replace_seed(cell):
    return cell._replace(recipe=replace(cell.recipe, seed=9))


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (29, "29 s"), (90, "2 min"), (3599, "1 h 00 min")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text
