"""The live table of a comparison."""

import io
from dataclasses import replace

import pytest
import rich
from rich.console import Console

from spem.compare.progress import ProgressTable
from spem.compare.records import make_failure
from spem.compare.study import Study


def finished(run, accuracy, seconds, epochs=None):
    """The record of a run, with as many epochs as its recipe unless it stopped early."""
    summary = {"final_test_top1": accuracy, "seconds": seconds}
    history = {"epoch": list(range(epochs or run.recipe.epochs))}
    return make_failure(run, "") | {"summary": summary, "history": history, "error": None}


@pytest.fixture
def console(monkeypatch):
    """A terminal of 12 lines."""
    made = Console(file=io.StringIO(), force_terminal=True, width=100, height=12, color_system=None)
    monkeypatch.setattr(rich, "_console", made)
    return made


@pytest.fixture
def plan():
    return Study(models="resnet8", gates=["none", "spem", "se", "eca"], seeds=2).plan(epochs=10)


def shown(console, plan, records, folder, running=(), jobs=1):
    """The table as it is drawn while runs train."""
    with ProgressTable(plan, folder, records, jobs, live=True) as live:
        console.file.truncate(0)
        live.show_running([run.folder_in(folder) for run in running])
        return console.file.getvalue()


def test_it_counts_and_names_what_runs(console, plan, tmp_path):
    console.size = (100, 30)
    records = {plan[0].key: finished(plan[0], 0.9, 100.0)}
    records[plan[4].key] = finished(plan[4], 0.8, 100.0)
    records[plan[1].key] = make_failure(plan[1], "not finite")
    running = plan[2].folder_in(tmp_path)
    running.mkdir(parents=True)
    (running / "metrics.csv").write_text("epoch\n0\n1\n2\n")
    text = shown(console, plan, records, tmp_path, [plan[2]])
    assert "3 of 8 runs, 1 failed" in text
    assert "2/2  │ 85.00% ± 7.07%" in text
    assert "seed 0: 3/10" in text
    # 10 s an epoch, 50 epochs of which 3 are done.
    assert "about 8 min left" in text
    assert "about 4 min left" in shown(console, plan, records, tmp_path, [plan[2]], jobs=2)


def test_the_time_of_an_epoch_is_that_of_those_that_a_run_had(console, plan, tmp_path):
    for seconds, epochs in ((100.0, 10), (20.0, 2)):  # of ten epochs, or stopped early
        records = {plan[0].key: finished(plan[0], 0.9, seconds, epochs)}
        assert "about 12 min left" in shown(console, plan, records, tmp_path)


def test_without_a_timed_epoch_nothing_is_estimated(console, plan, tmp_path):
    assert "left" not in shown(console, plan, {}, tmp_path)


def test_rows_that_do_not_fit_give_way_to_those_that_run(console, plan, tmp_path):
    text = shown(console, plan, {}, tmp_path, [plan[3]])
    assert "eca" in text
    assert "spem" not in text


@pytest.mark.parametrize("live", [True, False])
def test_at_the_end_all_rows_are_printed(console, plan, tmp_path, live):
    with ProgressTable(plan, tmp_path, {}, 1, live):
        console.file.truncate(0)
    text = console.file.getvalue()
    assert all(run.gate in text for run in plan)


def test_a_run_that_ends_has_its_line(console, plan, tmp_path):
    records = {plan[0].key: finished(plan[0], 0.9, 100.0)}
    with ProgressTable(plan, tmp_path, records, 1, live=False) as quiet:
        quiet.print_end(plan[0], None)
        quiet.print_end(replace_seed(plan[1]), "not finite")
        printed = console.file.getvalue()
    assert printed == (
        "[1/8] none, resnet8, digits, seed 0: test top-1 90.00% after 100 s\n"
        "[1/8] spem, resnet8, digits, seed 9: failed: not finite\n"
    )


def replace_seed(run):
    return run._replace(recipe=replace(run.recipe, seed=9))


def test_names_are_printed_as_they_are(console, tmp_path):
    """A label in brackets is no markup of rich, and one between colons no picture."""
    names = ["a[b]", "[bold]x[/bold]", "[/]", "c:+1:d"]
    gates = [{"gate": "se", "mix": i / 8, "pool": "fixed", "label": n} for i, n in enumerate(names)]
    plan = Study(models="resnet8", gates=gates, seeds=1).plan(epochs=1)
    console.size = (100, 30)
    text = shown(console, plan, {}, tmp_path)
    with ProgressTable(plan, tmp_path, {}, 1, live=False) as quiet:
        for run in plan:
            quiet.print_end(run, "[red]not finite[/]")
    text = text, console.file.getvalue()
    assert all(name in part for name in names for part in text)
    assert "failed: [red]not finite[/]" in text[1]
