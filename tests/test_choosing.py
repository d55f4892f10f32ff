"""docs/choosing-a-gate.md: its tables are those that the data give now."""

import csv

import pytest
from benchmarks.bench.cases import ALL_GATES
from benchmarks.bench.table import COLUMNS
from docs import choosing

from spem.gates import GATES

# Each network and each export takes a second.
FEW = ("se", "simam")
EACH_CASE = [
    pytest.param(case, marks=() if case in FEW else pytest.mark.gates) for case in ALL_GATES
]


@pytest.fixture(scope="module")
def page():
    return choosing.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", EACH_CASE)
@pytest.mark.parametrize("table", ["costs", "needs"])
def test_the_line_of_a_gate_is_current(table, case, page):
    write = getattr(choosing, table)
    assert write(case) in page


def test_the_rest_of_the_page_is_current(page, monkeypatch):
    for table in ("costs", "needs"):
        monkeypatch.setitem(choosing.PARTS, table, lambda table=table: _part(page, table))
    assert choosing.rendered() == page
    links = [f"| [`{case.removesuffix(' whole')}`]" for case in ALL_GATES]
    for table in ("costs", "needs"):
        rows = _part(page, table).splitlines()[2:]
        assert [row.split("(")[0] for row in rows] == links


def _part(page, table):
    return page.split(f"<!-- {table} -->\n")[1].split("<!-- end -->")[0]


def test_every_published_figure_says_where_it_is_from():
    with choosing.PAGE.with_name("published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {"README", "README and log", "figure in a README", "third party"}
    assert {row["source"] for row in rows} <= kinds
    assert {row["gate"] for row in rows} <= GATES.keys()
    for row in rows:
        assert all(row[key] for key in ("data", "network", "measure", "gated", "from"))
        assert 0 < float(row["plain"] or 1) < float(row["gated"]) < 100


def test_a_measured_time_is_shown_and_a_missing_one_is_an_empty_cell(monkeypatch, tmp_path):
    monkeypatch.setattr(choosing, "RESULTS", tmp_path)
    assert choosing._time("cpu", "training", "se") == ""
    assert choosing.conditions().splitlines() == [
        "* CPU: not measured yet.",
        "* CUDA: not measured yet.",
    ]
    row = dict.fromkeys(COLUMNS, "1")
    row |= {"group": "training", "form": "ours", "ratio_50": "1.234", "state": "ok"}
    with (tmp_path / "gates-cpu.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows([row | {"gate": gate} for gate in ("none", "se")])
        table.writerow(row | {"gate": "eca", "ratio_50": ""})  # a red one has no numbers
    assert choosing._time("cpu", "training", "se") == "×1.23"
    assert choosing._time("cpu", "training", "eca") == ""
    assert choosing._time("cpu", "inference", "se") == ""
    assert "n = 1 pairs" in choosing.conditions()
