import json

import pytest

from spem.compare.records import Ledger, groups, make_failure, relabel, row_of
from spem.compare.study import Study


@pytest.fixture
def cells():
    return Study(models="resnet8", gates=["none", "se"], seeds=2).cells()


def test_the_last_record_of_a_key_counts(tmp_path, cells):
    ledger = Ledger(tmp_path)
    ledger.append(make_failure(cells[0], "first"))
    ledger.append(make_failure(cells[1], "other"))
    ledger.append(make_failure(cells[0], "second"))
    again = Ledger(tmp_path)
    assert again.records == ledger.records
    assert [record["error"] for record in again.records.values()] == ["second", "other"]


@pytest.mark.parametrize("rest", ["", '{"key": "x"}\n', "[1]\n", "\xff\n"])
def test_a_line_that_was_cut_off_is_kept_apart_and_no_other_is_lost(tmp_path, cells, rest):
    ledger = Ledger(tmp_path)
    for cell in cells[:3]:
        ledger.append(make_failure(cell, "x"))
    whole = ledger.path.read_text()
    lines = whole.splitlines(keepends=True)
    cut = lines[2][:40]
    ledger.path.write_text(lines[0] + lines[1] + cut + ("\n" + rest if rest else ""))
    again = Ledger(tmp_path)
    assert again.damaged == [cut, *rest.splitlines()]
    assert list(again.records) == [cell.key for cell in cells[:2]]
    again.repair()
    assert ledger.path.read_text() == lines[0] + lines[1]
    assert (tmp_path / "records.damaged").read_text().splitlines() == again.damaged
    again.append(make_failure(cells[2], "x"))
    assert ledger.path.read_text() == whole


def test_a_record_without_the_end_of_its_line_is_whole(tmp_path, cells):
    ledger = Ledger(tmp_path)
    ledger.append(make_failure(cells[0], "x"))
    ledger.path.write_text(ledger.path.read_text().rstrip("\n"))
    again = Ledger(tmp_path)
    assert again.damaged == []
    again.repair()
    again.append(make_failure(cells[1], "y"))
    assert len(Ledger(tmp_path).records) == 2
    assert not (tmp_path / "records.damaged").exists()


def test_records_are_found_by_group_and_row(cells):
    records = [make_failure(cell, "x") for cell in cells]
    assert groups(records) == {("resnet8", "digits"): {"none": records[0::2], "se": records[1::2]}}
    assert row_of(records[0] | {"overrides": "fast"}) == "none, fast"


def test_a_record_takes_the_labels_of_a_new_study(cells):
    record = make_failure(cells[1], "x")
    assert relabel(record, cells[1]) is None
    renamed = relabel(record, cells[1]._replace(gate="squeeze"))
    assert renamed is not None
    assert renamed["gate"] == "squeeze"
    assert json.loads(json.dumps(renamed)) == renamed
