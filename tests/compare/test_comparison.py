"""`spem compare`: the grid, what is kept, what is never done twice, what is refused."""

import csv
import json
import shutil

import pytest
import yaml
from filelock import FileLock

from spem.cli import main
from spem.compare import comparison, launchers, runner
from spem.compare.records import Ledger
from spem.compare.study import Study, study_names

KEYS = {"threads": 1, "device": "cpu", "progress": False, "epochs": 1, "batch_size": 500}


STUDIES = ("quick", "finetune", "imagenet-attention", "paper", "pooling", "ablation", "backbones")


def plan_of(**keys):
    options = {"models": "resnet8", "gates": ["none", "spem"], "seeds": 1}
    return Study(**options | keys).plan(**KEYS)


@pytest.fixture
def trained(monkeypatch):
    """The folders in which `fit` was called, in their order."""
    folders = []

    def fit(recipe, *, out, **options):
        folders.append(out)
        return original(recipe, out=out, **options)

    original = launchers.fit
    monkeypatch.setattr(launchers, "fit", fit)
    return folders


def test_every_run_has_a_record_and_is_never_run_again(tmp_path, trained, capsys):
    plan = plan_of(seeds=2)
    assert runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False) == 0
    assert trained == [run.folder_in(tmp_path) for run in plan]
    assert "[4/4] spem, resnet8, digits, seed 1: test top-1" in capsys.readouterr().out
    before = (tmp_path / "records.jsonl").read_bytes()
    records = Ledger(tmp_path).records
    assert list(records) == [run.key for run in plan]
    for run in plan:
        record, folder = records[run.key], run.folder_in(tmp_path)
        summary = json.loads((folder / "summary.json").read_text())
        assert record["summary"] | {"files": summary["files"]} == summary
        assert record["seed"] == run.recipe.seed
        with (folder / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert set(record["history"]) == set(row)
        assert record["history"]["test_top1"] == pytest.approx([float(row["test_top1"])], rel=1e-5)
    assert runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False) == 0
    assert len(trained) == 4
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_folds_measure_every_image_once_and_are_named(tmp_path, capsys):
    plan = plan_of(seeds=None, folds=2)
    assert runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False) == 0
    assert "[4/4] spem, resnet8, digits, fold 2 of 2: test top-1" in capsys.readouterr().out
    records = [Ledger(tmp_path).records[run.key] for run in plan]
    assert [(r["seed"], r["recipe"]["fold"], r["gate"]) for r in records] == [
        (0, 1, "none"),
        (0, 1, "spem"),
        (0, 2, "none"),
        (0, 2, "spem"),
    ]
    tested = [record["summary"]["images"]["test"] for record in records[::2]]
    assert sum(tested) == 1797
    for other, message in (
        ({"seeds": 2}, "holds fold 1 of 2, and seed 0 cannot stand in a table with it"),
        ({"seeds": None, "folds": 3}, "holds fold 1 of 2, and fold 1 of 3 cannot stand"),
        ({"seeds": [7], "folds": 2}, r"with fold 1 of 2 by another recipe \(seed 0 there, 7 now\)"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.run_comparison(plan_of(**other), tmp_path, launchers.run_here, costs=False)


def test_more_folds_than_images_of_the_rarest_class_are_refused_before_anything_is_written(
    tmp_path,
):
    with pytest.raises(ValueError, match=r"folds is 175, must be at most 174, .* class '8'"):
        runner.run_comparison(plan_of(seeds=None, folds=175), tmp_path / "out", launchers.run_here)
    assert not (tmp_path / "out").exists()


def test_learned_mixing_ratios_are_kept_for_every_epoch(tmp_path):
    (run,) = plan_of(gates="spem")
    runner.run_comparison([run], tmp_path, launchers.run_here, costs=False)
    history = Ledger(tmp_path).records[run.key]["history"]
    names = [name for name in history if name.startswith("mixing.")]
    assert names == [f"mixing.layer{stage}.0.bn2.gate" for stage in (1, 2, 3)]
    assert all(0 <= value <= 1 for name in names for value in history[name])


def test_records_that_a_crash_took_are_made_again_from_the_runs(tmp_path, trained, capsys):
    plan = plan_of()
    runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False)
    path = tmp_path / "records.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-50])
    capsys.readouterr()
    runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False)
    assert len(trained) == 2
    assert path.read_text() == whole
    printed = capsys.readouterr().out
    assert f"1 damaged lines of {path} went to records.damaged" in printed
    path.unlink()
    runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False)
    assert path.read_text() == whole


def test_records_alone_are_enough(tmp_path, trained):
    plan = plan_of()
    runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False)
    shutil.rmtree(tmp_path / "cells")
    runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False)
    assert len(trained) == 2


def test_a_run_that_fails_is_recorded_and_tried_again(tmp_path, monkeypatch, capsys):
    plan, original = plan_of(), launchers.fit

    def fit(recipe, **options):
        if recipe.gate == "spem":
            raise ValueError("the training loss of epoch 3 is not finite")
        return original(recipe, **options)

    monkeypatch.setattr(launchers, "fit", fit)
    assert runner.run_comparison(plan, tmp_path, launchers.run_here) == 1
    assert "failed: the training loss of epoch 3 is not finite" in capsys.readouterr().out
    assert not (tmp_path / "costs.jsonl").exists()
    record = Ledger(tmp_path).records[plan[1].key]
    assert (record["summary"], record["error"]) == (
        None,
        "the training loss of epoch 3 is not finite",
    )
    monkeypatch.setattr(launchers, "fit", original)
    assert runner.run_comparison(plan, tmp_path, launchers.run_here, costs=False) == 0
    assert Ledger(tmp_path).records[plan[1].key]["error"] is None


def test_a_defect_is_recorded_with_its_kind_and_its_trace_is_kept(tmp_path, monkeypatch):
    def fit(recipe, **options):
        raise RuntimeError("out of memory")

    (run,) = plan_of(gates="none")
    monkeypatch.setattr(launchers, "fit", fit)
    assert runner.run_comparison([run], tmp_path, launchers.run_here) == 1
    error = Ledger(tmp_path).records[run.key]["error"]
    assert error == f"RuntimeError: out of memory (see {run.key}.log)"
    assert "Traceback" in (tmp_path / "cells" / f"{run.key}.log").read_text()


def test_another_study_in_the_folder_renames_its_runs_and_adds_its_own(tmp_path, trained):
    runner.run_comparison(plan_of(gates=["none", "se"]), tmp_path, launchers.run_here, costs=False)
    more = plan_of(gates=["none", {"gate": "se", "label": "squeeze"}, "eca"])
    runner.run_comparison(more, tmp_path, launchers.run_here, costs=False)
    assert len(trained) == 3
    labels = [record["gate"] for record in Ledger(tmp_path).records.values()]
    assert labels == ["none", "squeeze", "eca"]


def test_a_mistake_in_the_last_network_is_found_before_the_first_run(tmp_path, trained):
    plan = plan_of(gates=["none", {"gate": "sge", "groups": 64}])
    with pytest.raises(ValueError, match="groups is 64, must be a divisor of the 16 channels"):
        runner.run_comparison(plan, tmp_path / "x", launchers.run_here)
    plan = plan_of(data=["digits", {"data": "cifar10", "data_dir": str(tmp_path)}])
    with pytest.raises(FileNotFoundError, match="cifar-10"):
        runner.run_comparison(plan, tmp_path / "x", launchers.run_here)
    assert not trained
    assert not (tmp_path / "x").exists()


def test_a_second_comparison_in_the_folder_is_refused(tmp_path, trained):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match=f"another comparison works in {tmp_path}: wait for it"),
    ):
        runner.run_comparison(plan_of(), tmp_path, launchers.run_here)
    assert not trained
    runner.run_comparison(plan_of(gates="none"), tmp_path, launchers.run_here, costs=False)
    assert len(trained) == 1


def test_costs_are_measured_once_in_turns_with_the_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr("spem.compare.costs.ROUNDS", 2)
    plan = plan_of(gates=["none", {"gate": "se", "pool": "max"}])
    runner.run_comparison(plan, tmp_path, launchers.run_here)
    path = tmp_path / "costs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["gate"] for row in rows] == ["none", "se pool=max"]
    for row in rows:
        for kind in ("train", "inference"):
            assert 0 < row[kind]["low"] <= row[kind]["median"] <= row[kind]["high"]
        assert row["rounds"] == 2
        assert row["batch_size"] == 500
    assert rows[0]["train_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert rows[1]["train_ratio"]["median"] != 1
    # A step keeps at least the input of the first stage's convolutions for its backward pass.
    least = 500 * 16 * 8 * 8 * 4
    assert all(row["memory"] is None or row["memory"] > least for row in rows)
    before = path.read_bytes()
    runner.run_comparison(plan, tmp_path, launchers.run_here)
    assert path.read_bytes() == before


def test_the_command_keeps_what_the_report_says(tmp_path, monkeypatch):
    asked = []

    def run_local(runs, on_end, on_progress, jobs):
        for recipe, folder in runs:
            asked.append((recipe, jobs))
            on_end(folder, "not trained")

    monkeypatch.setattr(launchers, "run_local", run_local)
    words = ["--gates", "none", "{gate: se, pool: fixed, mix: 0.3}", "--model", "resnet8"]
    words += ["--data", "digits", "--seeds", "2", "--epochs", "3", "--no-flip", "--no-costs"]
    words += ["--validation", "none"]
    assert main(["compare", *words, "--jobs", "2", "--out", str(tmp_path)]) == 1
    assert {jobs for _, jobs in asked} == {2}
    options = {"init": "identity", "pool": "fixed", "mix": 0.3}  # the start is that of `digits`
    assert [recipe.gate_options for recipe, _ in asked] == [{}, options] * 2
    assert {recipe.epochs for recipe, _ in asked} == {3}
    said = yaml.safe_load((tmp_path / "study.yaml").read_text())
    assert said["planned"] == 4
    assert said["commands"] == [
        "spem compare --gates none '{gate: se, pool: fixed, mix: 0.3}' --model resnet8 --data"
        f" digits --seeds 2 --validation none --no-flip --epochs 3 --out {tmp_path}"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "jobs is 0, must be at least 1"),
        (["--address", "x"], "address belongs to the launcher ray, not to 'local'"),
        (["--study", "papr"], "unknown study 'papr'; known: paper"),
        (["--gates", "{gate: se"], "is no valid YAML"),
        (["--gates", "none", "spme"], "unknown gate 'spme'; known: spem"),
        (["--model", "resnet9"], "'none' of resnet9 on digits: depth 9 is neither 6n+2"),
        (["--replicas", "2"], "unknown flag '--replicas'"),
        (["--seeds", "-1"], "seeds must be a number from 1 to 10,000"),
        (["--seed", "1"], "unknown flag '--seed'; known: --seeds"),
        (["--overrides", "lr=0.05"], "overrides must be mappings of recipe keys, got 'lr=0.05'"),
        (["--overrides", "{lr: 0.05}", "--lr", "0.1"], "lr is part of the name 'lr=0.05'"),
        (["--weights", "x.safetensors"], "there is no weight file x.safetensors"),
        (["--mean", "[0.1,0.2,0.3]"], "mean has 3 values, the images 1 channels"),
        (["--small"], "this comparison has no small form"),
        (["--launcher", "slurm"], "slurm"),
    ],
)
def test_wrong_words_are_refused_in_one_line(tmp_path, capsys, words, message):
    folder = tmp_path / "x"
    try:
        code = main(["compare", *words, "--out", str(folder)])
    except SystemExit as exit_:
        code = exit_.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not folder.exists()


def test_a_folder_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["compare"])
    assert capsys.readouterr().err == "spem: error: the following arguments are required: --out\n"


def test_the_help_names_the_studies():
    text = " ".join(str(comparison.compare.__doc__).split())
    assert f"({', '.join(STUDIES)})" in text
    assert set(study_names()) == {*STUDIES}


def test_the_command_is_the_same_however_its_flags_are_ordered(tmp_path, monkeypatch):
    monkeypatch.setattr(
        launchers, "run_local", lambda runs, on_end, *_, jobs: [on_end(f, "x") for _, f in runs]
    )
    for order in (["--lr", "0.1", "--epochs", "2"], ["--epochs", "2", "--lr", "0.1"]):
        main(["compare", "--gates", "none", "--model", "resnet8", *order, "--out", str(tmp_path)])
    assert len(yaml.safe_load((tmp_path / "study.yaml").read_text())["commands"]) == 1
