import json

import pytest

from spem.compare.records import Ledger, group_records, make_failure, relabel, row_of
from spem.compare.study import Study


@pytest.fixture
def plan():
    return Study(models="resnet8", gates=["none", "se"], seeds=2).plan()


def test_the_last_record_of_a_key_counts(tmp_path, plan):
    ledger = Ledger(tmp_path)
    ledger.append(make_failure(plan[0], "first"))
    ledger.append(make_failure(plan[1], "other"))
    ledger.append(make_failure(plan[0], "second"))
    again = Ledger(tmp_path)
    assert again.records == ledger.records
    assert [record["error"] for record in again.records.values()] == ["second", "other"]


@pytest.mark.parametrize("rest", ["", '{"key": "x"}\n', "[1]\n", "\xff\n"])
def test_a_line_that_was_cut_off_is_kept_apart_and_no_other_is_lost(tmp_path, plan, rest):
    ledger = Ledger(tmp_path)
    for run in plan[:3]:
        ledger.append(make_failure(run, "x"))
    whole = ledger.path.read_text()
    lines = whole.splitlines(keepends=True)
    cut = lines[2][:40]
    ledger.path.write_text(lines[0] + lines[1] + cut + ("\n" + rest if rest else ""))
    again = Ledger(tmp_path)
    assert again.damaged == [cut, *rest.splitlines()]
    assert list(again.records) == [run.key for run in plan[:2]]
    again.repair()
    assert ledger.path.read_text() == lines[0] + lines[1]
    assert (tmp_path / "records.damaged").read_text().splitlines() == again.damaged
    again.append(make_failure(plan[2], "x"))
    assert ledger.path.read_text() == whole


def test_a_record_without_the_end_of_its_line_is_whole(tmp_path, plan):
    ledger = Ledger(tmp_path)
    ledger.append(make_failure(plan[0], "x"))
    ledger.path.write_text(ledger.path.read_text().rstrip("\n"))
    again = Ledger(tmp_path)
    assert again.damaged == []
    again.repair()
    again.append(make_failure(plan[1], "y"))
    assert len(Ledger(tmp_path).records) == 2
    assert not (tmp_path / "records.damaged").exists()


def test_records_are_found_by_group_and_row(plan):
    records = [make_failure(run, "x") for run in plan]
    assert group_records(records) == {
        ("resnet8", "digits"): {"none": records[0::2], "se": records[1::2]}
    }
    assert row_of(records[0] | {"overrides": "fast"}) == "none, fast"


def test_a_record_takes_the_labels_of_a_new_study(plan):
    record = make_failure(plan[1], "x")
    assert relabel(record, plan[1]) is None
    renamed = relabel(record, plan[1]._replace(gate="squeeze"))
    assert renamed is not None
    assert renamed["gate"] == "squeeze"
    assert json.loads(json.dumps(renamed)) == renamed
