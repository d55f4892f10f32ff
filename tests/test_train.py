"""What `fit` takes, refuses and leaves behind."""

import json
from dataclasses import replace

import pytest
import torch
from runs import SMALL, Net, check_same, net, rows

from spem import train
from spem.batches import Split
from spem.checkpoint import FILES, load_run
from spem.data import Dataset
from spem.recipes import load_recipe
from spem.train import fit, keep_freed_memory


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_the_folder_holds_what_was_promised():
    recipe = replace(SMALL, model="resnet8", gate="spem", gate_options={"alpha": 0.2})
    run = fit(recipe)
    assert {path.name for path in run.folder.iterdir()} == set(FILES)
    assert load_recipe(str(run.folder / "recipe.yaml")) == recipe
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    table = rows(run.folder)
    assert run.summary["final_test_top1"] == float(table[-1]["test_top1"])
    assert run.summary["best_test_top1"] == max(float(row["test_top1"]) for row in table)
    best = table[run.summary["best_validation_epoch"]]
    assert float(best["validation_top1"]) == max(float(row["validation_top1"]) for row in table)
    assert run.summary["test_top1_at_best_validation"] == float(best["test_top1"])
    assert run.summary["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert run.summary["seconds"] >= 2 * 1293 / run.summary["images_per_second"]
    config = load_run(run.folder)[1]
    assert (config["model"], config["gate"]) == ("resnet8", "spem")
    assert config["gate_options"] == {"alpha": 0.2}
    assert (config["image_size"], config["mean"], config["std"]) == ([8, 8], [0.5], [0.5])
    assert config["classes"] == list("0123456789")


def test_multiply_adds_are_those_of_convolutions_and_linear_layers():
    assert fit(SMALL, net()).summary["macs"] == 9 * (9 * 8) + 72 * 10


def test_without_a_validation_split_its_values_are_null():
    run = fit(replace(SMALL, validation=None), net())
    assert run.summary["best_validation_epoch"] is None
    assert run.summary["test_top1_at_best_validation"] is None
    assert rows(run.folder)[0]["validation_top1"] == ""


def test_below_six_classes_top5_is_empty(monkeypatch):
    split = Split(torch.randint(256, (60, 1, 8, 8)).to(torch.uint8), torch.arange(60) % 4)
    few = Dataset("few", split, split, split, classes=tuple("abcd"))
    monkeypatch.setattr(train, "load_dataset", lambda *_, **__: few)
    table = rows(fit(SMALL, net(classes=4)).folder)
    assert {table[0][f"{part}_top5"] for part in ("train", "validation", "test")} == {""}


def test_a_model_of_the_users_own_is_trained_in_place_and_named():
    model = net()
    run = fit(replace(SMALL, epochs=10), model)
    assert run.model is model
    assert run.folder.name == "Net-plain-digits-0"
    assert run.summary["final_test_top1"] > 0.5
    with pytest.raises(ValueError, match="of your own"):
        load_run(run.folder)


def test_a_run_starts_from_stored_weights():
    first = fit(SMALL, net())
    second = fit(replace(SMALL, lr=1e-12, weights=str(first.folder)), Net())
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict())


def test_a_finished_run_is_returned_as_it_is(capsys):
    run = fit(SMALL, net(), out="run")
    files = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    again = fit(SMALL, Net(), out="run", resume=True)
    assert again.summary == run.summary
    check_same(run, again)
    assert "finished" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}


def test_a_folder_in_use_is_refused_and_can_be_overwritten():
    fit(SMALL, net(), out="run")
    with pytest.raises(FileExistsError, match="run exists"):
        fit(SMALL, net(), out="run")
    longer = replace(SMALL, epochs=3)
    with pytest.raises(ValueError, match="epochs"):
        fit(longer, net(), out="run", resume=True)
    assert len(rows(fit(longer, net(), out="run", overwrite=True).folder)) == 3
    with pytest.raises(ValueError, match="out"):
        fit(SMALL, net(), resume=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "16-mixed"}, "precision '16-mixed' is not possible on 'cpu'"),
        ({"device": "mps"}, "'mps' was asked for"),
        ({"data": "digit"}, "unknown data set"),
        ({"model": "resnett20"}, "unknown model"),
        ({"gate": "spme"}, "unknown gate"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean"),
        ({"batch_size": 1292, "devices": 2}, "leaves 1 images"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(
    changes, sentence, tmp_path
):
    with pytest.raises(ValueError, match=sentence):
        fit(replace(SMALL, **{"model": "resnet8"} | changes))
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_other_outputs_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 7\) for one image, digits needs \(1, 10\)"):
        fit(SMALL, net(classes=7))
    assert list(tmp_path.iterdir()) == []


def test_freed_memory_may_be_kept_anywhere():
    keep_freed_memory()
