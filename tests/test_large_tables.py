"""Tables that are larger than any that spem writes: noticed before they are read."""

from dataclasses import replace

import pytest
import reports
from limits import limits
from runs import SMALL

from spem.report.tables import read_contents
from spem.train.fitting import fit


def enlarge(path):
    with path.open("a") as file:
        file.truncate(2 << 30)  # takes no room on the disk


@pytest.mark.parametrize("name", ["records.jsonl", "costs.jsonl", "mistakes.jsonl"])
def test_a_report_refuses_them(tmp_path, name):
    reports.write(tmp_path, [reports.record("none", 0, 0.9)])
    enlarge(tmp_path / name)
    with limits("this table"), pytest.raises(ValueError, match=f"{name} has 2,147,483,648 bytes"):
        read_contents(tmp_path)


def test_a_run_makes_its_own_again(tmp_path):
    recipe = replace(SMALL, epochs=1)
    fit(recipe, out=tmp_path / "run")
    enlarge(tmp_path / "run" / "metrics.csv")
    with limits("this table"):
        fit(recipe, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.csv").stat().st_size < 10**4
