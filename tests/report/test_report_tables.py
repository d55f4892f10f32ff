"""The tables of a report and its sentences, against scipy and by hand."""

import re
import statistics

import pytest
import reports
import yaml
from scipy import stats

from spem.report.tables import read_contents

# Test accuracies by row and seed, in percent.
FOUND = {
    "none": [90.0, 91.0, 90.5, 90.2, 90.8, 90.1],
    "spem": [92.1, 92.9, 92.4, 92.3, 92.8, 92.2],
    "se": [90.1, 90.9, 90.5, 90.3, 90.6, 90.3],
    "eca": [90.4, 91.4, 90.9, 90.6, 91.2, 90.5],
}


def recorded(found, **options):
    return [
        reports.record(gate, seed, round(value / 100, 6), **options)
        for gate, values in found.items()
        for seed, value in enumerate(values)
    ]


def columns(table, row=None):
    """The texts of a table by the titles of its columns: of one row, or of each."""
    rows = {cells[0].text: [cell.text for cell in cells] for cells in table.rows}
    found = {name: dict(zip(table.header, cells, strict=True)) for name, cells in rows.items()}
    return found if row is None else found[row]


def only_group(folder):
    (group,) = read_contents(folder).groups
    return group


def test_the_table_says_what_scipy_says(tmp_path):
    group = only_group(reports.write(tmp_path, recorded(FOUND)))
    tests = {gate: stats.ttest_rel(FOUND[gate], FOUND["none"]) for gate in ("spem", "se")}
    spem, se = columns(group.table, "spem"), columns(group.table, "se")
    assert (spem["n"], spem["final test top-1, %"]) == ("6", "92.45 ± 0.33")
    assert spem["95 % interval"] == "[92.11, 92.79]"
    for gate, row in (("spem", spem), ("se", se)):
        interval = tests[gate].confidence_interval()
        mean = statistics.fmean(FOUND[gate]) - statistics.fmean(FOUND["none"])
        expected = f"{mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
        assert row["difference to the baseline, points"] == expected
    assert spem["p (paired t, Holm)"] == "< 0.001"
    assert 0.5 < tests["se"].pvalue < 1
    assert se["p (paired t, Holm)"] == f"{tests['se'].pvalue:.3f}"  # the larger of two
    assert spem["p (Wilcoxon)"] == f"{2 / 2**6:.3f}"
    assert spem["verdict"] == "higher"
    assert re.fullmatch(r"no difference beyond ±0\.1\d points", se["verdict"])
    none = columns(group.table, "none")
    assert none["difference to the baseline, points"] == none["p (paired t, Holm)"] == "-"
    assert none["verdict"] == "baseline"


def test_a_run_that_diverged_is_marked_and_said(tmp_path):
    records = [reports.record(gate, seed, 0.9) for gate in ("none", "se") for seed in (0, 1)]
    records[3]["history"]["train_loss"][-1] = 1e8
    table = reports.groups_of(tmp_path, records)[0].table
    assert [row[0].text for row in table.rows] == ["none", "se (!)"]
    assert table.notes == ["(!) A run has diverged, its last loss is above 50: se, seeds 1."]


def test_equal_differences_have_no_p_though_rounding_would_give_one(tmp_path):
    """Every difference of ECA is 0.4; the rounding of the subtraction makes scipy say 1e-70."""
    assert stats.ttest_rel(FOUND["eca"], FOUND["none"]).pvalue < 1e-60
    eca = columns(only_group(reports.write(tmp_path, recorded(FOUND))).table, "eca")
    assert eca["p (paired t, Holm)"] == "- (zero variance)"
    assert eca["p (Wilcoxon)"] == "-"
    assert eca["difference to the baseline, points"] == "+0.40 [+0.40, +0.40]"
    assert eca["verdict"] == "no test, every seed differs by +0.40 points"


def test_equal_counts_of_images_are_equal_whatever_digits_a_record_keeps(tmp_path):
    counts = {"none": [460, 462, 583, 100, 101, 102], "spem": [462, 464, 585, 102, 103, 104]}
    records = [
        reports.record(gate, seed, round(count / 900, 7))
        for gate, own in counts.items()
        for seed, count in enumerate(own)
    ]
    steps = {
        round(b["summary"]["final_test_top1"] - a["summary"]["final_test_top1"], 9)
        for a, b in zip(records[:6], records[6:], strict=True)
    }
    assert steps == {0.0022222, 0.0022223}
    spem = columns(only_group(reports.write(tmp_path, records)).table, "spem")
    assert spem["p (paired t, Holm)"] == "- (zero variance)"


def test_one_seed_tells_nothing(tmp_path):
    found = {gate: values[:1] for gate, values in FOUND.items()}
    group = only_group(reports.write(tmp_path, recorded(found)))
    spem = columns(group.table, "spem")
    assert spem["final test top-1, %"] == "92.10"
    assert spem["95 % interval"] == spem["p (paired t, Holm)"] == "- (n = 1)"
    assert spem["difference to the baseline, points"] == "+2.10"
    assert spem["verdict"] == "inconclusive (n = 1)"
    assert group.findings == ["Against none, inconclusive (n = 1): spem, se, eca."]


def test_findings_say_each_verdict_once(tmp_path):
    group = only_group(reports.write(tmp_path, recorded(FOUND | {"ie": FOUND["none"]})))
    eca, ie = (columns(group.table, row)["verdict"] for row in ("eca", "ie"))
    assert (eca[-12:], ie[-12:]) == ("+0.40 points", "+0.00 points")
    spem = columns(group.table, "spem")["difference to the baseline, points"].partition(" ")[2]
    assert group.findings == [
        f"spem is higher than none by 2.02 points (interval {spem}, n = 6, p < 0.001).",
        f"Against none, {columns(group.table, 'se')['verdict']}: se.",
        "Against none, no test, every seed differs by the points in brackets:"
        " eca (+0.40), ie (+0.00).",
    ]


def test_holm_counts_the_comparisons_of_one_group(tmp_path):
    lows = {"none": [90, 91, 92], "spem": [90.5, 91.6, 92.9], "se": [91, 92, 92.5]}
    records = recorded(lows) + recorded(lows, data="cifar100")
    groups = read_contents(reports.write(tmp_path, records)).groups
    assert [(g.model, g.data) for g in groups] == [
        ("resnet20", "cifar10"),
        ("resnet20", "cifar100"),
    ]
    raw = sorted(stats.ttest_rel(lows[gate], lows["none"]).pvalue for gate in ("spem", "se"))
    for group in groups:
        shown = sorted(
            row["p (paired t, Holm)"] for row in columns(group.table).values() if row["n"] == "3"
        )
        assert shown[1:] == [f"{2 * raw[0]:.3f}", f"{max(2 * raw[0], raw[1]):.3f}"]
        assert raw[1] < 0.05 < 2 * raw[0]
        verdicts = {row["verdict"] for row in columns(group.table).values()}
        assert verdicts == {"baseline", "inconclusive (n = 3)"}


def test_each_row_is_compared_with_its_own_baseline(tmp_path):
    records = [
        reports.record("se", seed, 0.9 + seed / 100, label=label, against=against, options=options)
        for seed in range(3)
        for label, against, options in (
            ("se avg", "se avg", {"pool": "avg"}),
            ("se max", "se avg", {"pool": "max"}),
            ("other", "other", {"pool": "min"}),
            ("mixed", "other", {"pool": "adaptive"}),
        )
    ]
    group = only_group(reports.write(tmp_path, records))
    shown = {
        row: cells["difference to the baseline, points"]
        for row, cells in columns(group.table).items()
    }
    assert shown == {
        "se avg": "-",
        "se max": "+0.00 [+0.00, +0.00] to se avg",
        "other": "-",
        "mixed": "+0.00 [+0.00, +0.00] to other",
    }


def test_a_baseline_without_results_is_said(tmp_path):
    records = [reports.failure("none", 0, "out of memory"), reports.record("spem", 0, 0.92)]
    contents = read_contents(reports.write(tmp_path, records))
    (group,) = contents.groups
    assert columns(group.table, "spem")["p (paired t, Holm)"] == "- (no seed in common)"
    assert group.findings == ["Against none, no seed in common: spem."]
    assert list(group.rows) == ["spem"]
    assert "Failed: none, resnet20, cifar10, seed 0: out of memory" in contents.notes


def test_best_epochs_stand_beside_the_final_one(tmp_path):
    records = [reports.record("none", seed, 0.9, best=0.91 + seed / 50) for seed in range(2)]
    records += [reports.record("se", 0, 0.9, validation=False)]
    table = only_group(reports.write(tmp_path, records)).cost_table
    best = columns(table, "none")["best test epoch, % (as the paper reports)"]
    assert best == "92.00 ± 1.41"
    assert columns(table, "none")["at the best validation epoch, %"] == "90.00 ± 0.00"
    assert columns(table, "se")["at the best validation epoch, %"] == "-"


def test_costs_are_those_that_were_measured_apart(tmp_path):
    costs = [reports.cost("none", 300), reports.cost("spem", 240, memory=None)]
    group = only_group(reports.write(tmp_path, recorded(FOUND), costs))
    none, spem, se = (columns(group.cost_table, row) for row in ("none", "spem", "se"))
    assert spem["training, images/s"] == "240 [216, 264], ×1.25"
    assert spem["inference, images/s"] == "2,400 [2,160, 2,640], ×1.25"
    assert none["memory of a training step, MiB"] == "1.0"
    assert spem["memory of a training step, MiB"] == se["training, images/s"] == "-"
    assert (spem["parameters"], spem["multiply-adds"]) == ("272,474", "40,813,184")
    assert "over that of none" in group.cost_table.notes[0]


def test_costs_that_were_not_measured_are_said(tmp_path):
    group = only_group(reports.write(tmp_path, recorded(FOUND)))
    header = {*group.cost_table.header}
    assert not {"training, images/s", "memory of a training step, MiB"} & header
    assert group.cost_table.notes[0].startswith("Speed and memory were not measured: spem compare")


@pytest.mark.parametrize(
    ("planned", "failed", "state"),
    [
        (12, 0, "7 of 12 runs are finished"),
        (12, 2, "7 of 12 runs are finished, 2 failed"),
        (7, 0, "7 of 7 runs are finished"),
        (None, 1, "7 of 8 runs are finished, 1 failed"),
        (4, 0, "7 of 7 runs are finished"),  # of an earlier, larger study in the same folder
    ],
)
def test_a_partial_folder_says_how_much_there_is(tmp_path, planned, failed, state):
    records = [reports.record("none", seed, 0.9 + seed / 1000) for seed in range(7)]
    records += [
        reports.failure("none", 7 + index, "a loss is not finite") for index in range(failed)
    ]
    study = {"title": "Few", "planned": planned, "commands": ["spem compare --seeds 12"]}
    contents = read_contents(reports.write(tmp_path, records, study=study))
    assert (contents.title, contents.state) == ("Few", state)
    assert sum("a loss is not finite" in note for note in contents.notes) == failed


def test_damaged_lines_are_told_and_left_alone(tmp_path):
    path = reports.write(tmp_path, recorded(FOUND)) / "records.jsonl"
    path.write_text(path.read_text()[:-40])
    before = path.read_bytes()
    notes = read_contents(tmp_path).notes
    assert notes[0].startswith("1 line of records.jsonl is damaged and left out")
    assert path.read_bytes() == before


def test_what_the_runs_share_is_told_once(tmp_path):
    records = [reports.record("none", seed, 0.9) for seed in range(2)]
    records += [reports.record("se", 0, 0.9, options={"pool": "max"}, lr=0.05)]
    contents = read_contents(reports.write(tmp_path, records))
    shared = yaml.safe_load(contents.recipe)
    assert shared["model"] == "resnet20"
    assert not {"seed", "gate", "gate_options", "lr"} & shared.keys()
    assert contents.differing == [
        "none, resnet20, cifar10: gate: null, gate_options: {}, lr: 0.1, seeds 0, 1",
        "se, resnet20, cifar10: gate: se, gate_options: {pool: max}, lr: 0.05, seeds 0",
    ]
    assert contents.versions == [
        "python 3.11.7, torch 2.13.0, spem 0.1.0, lightning-fabric 2.6.6 (3 runs)"
    ]
    assert contents.devices == ["x86_64 AVX512, eager kernels (3 runs)"]


def test_the_threads_of_runs_are_told_where_they_are_known(tmp_path):
    records = [reports.record("none", seed, 0.9) for seed in range(5)]
    for record, threads in zip(records, (1, 2, 2, None), strict=False):
        record["summary"]["threads"] = threads
    assert read_contents(reports.write(tmp_path, records)).devices == [
        "x86_64 AVX512, 1 thread, eager kernels (1 run)",
        "x86_64 AVX512, 2 threads, eager kernels (2 runs)",
        "x86_64 AVX512, eager kernels (2 runs)",
    ]


def test_the_reader_is_told_which_p_is_corrected_and_why_one_is_missing(tmp_path):
    notes = read_contents(reports.write(tmp_path, recorded(FOUND))).notes
    assert any("Wilcoxon's signed-rank test is given from 6 seeds on" in note for note in notes)


def test_a_clear_interval_is_told_even_where_the_corrected_p_is_not(tmp_path):
    values = {"none": [95.0, 94.2], "spem": [52.0, 55.5], "se": [94.0, 95.0]}
    (group,) = read_contents(reports.write(tmp_path, recorded(values))).groups
    assert columns(group.table, "spem")["verdict"] == "inconclusive (n = 2)"
    assert columns(group.table, "spem")["difference to the baseline, points"].endswith(" -13.53]")
    assert group.findings == [
        "Against none, inconclusive (n = 2): with 95 % confidence spem is between 13.53 and 68.17"
        " points lower, before the correction for several comparisons; se is between 11.54 points"
        " lower and 11.34 points higher."
    ]


def test_the_intervals_of_many_rows_are_read_out_together(tmp_path):
    values = {"none": [95.0, 94.2, 94.9]} | {f"g{i}": [96, 94 - i / 9, 95] for i in range(5)}
    (group,) = read_contents(reports.write(tmp_path, recorded(values))).groups
    ends = [
        stats.ttest_rel(values[f"g{i}"], values["none"]).confidence_interval() for i in range(5)
    ]
    low, high = min(end.low for end in ends), max(end.high for end in ends)
    assert group.findings == [
        "Against none, inconclusive (n = 3): with 95 % confidence each of g0, g1, g2, g3, g4 is"
        f" between {-low:.2f} points lower and {high:.2f} points higher."
    ]
