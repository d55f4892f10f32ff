"""The mistakes of a comparison: counted once, right, and never in the way."""

import json

import torch

from spem.cli.trained import Trained
from spem.compare import launchers, mistake_counts, run_data, runner
from spem.compare.mistakes import read_mistakes
from spem.compare.study import Study
from spem.data.batches import Batches
from spem.data.dataset import load_dataset
from spem.export.network import load_network

KEYS = {"threads": 1, "device": "cpu", "progress": False, "epochs": 1, "batch_size": 100}


def compare(folder, **keys):
    plan = Study(**{"models": "resnet8", "gates": ["none", "spem"]} | keys).plan(**KEYS)
    assert runner.run_comparison(plan, folder, launchers.run_here, costs=False) == 0
    return plan


def test_every_mistake_is_counted_by_class(tmp_path):
    plan = compare(tmp_path, folds=2)
    found = read_mistakes(tmp_path)
    assert list(found) == [run.key for run in plan]
    for run in plan:
        own, test = found[run.key], load_dataset("digits", folds=2, fold=run.recipe.fold).test
        assert own["images"] == test.labels.bincount().tolist()
        # `spem evaluate` measures a run on the images of its own fold.
        evaluated = Trained(str(run.folder_in(tmp_path))).load_data().test
        assert torch.equal(evaluated.images, test.images)
        model, config = load_network(run.folder_in(tmp_path))
        batches = Batches(test, 10_000, mean=config["mean"], std=config["std"])
        (images, labels) = next(batches.in_order())
        with torch.no_grad():
            predicted = model(images).argmax(1)
        assert sum(count for *_, count in own["confused"]) == int((predicted != labels).sum())
        for label, other, count in own["confused"]:
            assert count == int(((labels == label) & (predicted == other)).sum())


def test_what_was_counted_is_not_counted_again_and_damaged_lines_are(tmp_path, monkeypatch):
    compare(tmp_path, seeds=1)
    path = tmp_path / "mistakes.jsonl"
    whole = path.read_text()
    monkeypatch.setattr(mistake_counts, "load_network", None)
    compare(tmp_path, seeds=1)
    monkeypatch.undo()
    first, second = whole.splitlines()
    wrong = json.loads(second) | {"confused": [[0, 10, 1]]}
    path.write_text(f"{first}\n{json.dumps(wrong)}\n{second[:40]}")
    assert len(read_mistakes(tmp_path)) == 1
    compare(tmp_path, seeds=1)
    assert path.read_text() == whole


def test_a_comparison_whose_data_are_gone_goes_on(tmp_path, monkeypatch, capsys):
    compare(tmp_path, seeds=1)
    (tmp_path / "mistakes.jsonl").unlink()

    def load_data(recipe, cache):
        raise FileNotFoundError("the data are not there")

    monkeypatch.setattr(run_data, "load_data", load_data)
    compare(tmp_path, seeds=1)
    printed = capsys.readouterr().out
    assert "the mistakes of the other runs are not counted: the data are not there" in printed
