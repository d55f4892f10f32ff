"""A finished run that is trained further: what a longer run would have given, or a refusal."""

import json
from dataclasses import replace

import pytest
from runs import SMALL, Net, check_same, net, rows

from spem.train.fitting import fit
from spem.train.recipe_files import load_recipe

STEP = replace(SMALL, schedule="step", milestones=[1, 2], epochs=3, momentum=0.8, ema=0.9)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("recipe", [STEP, replace(SMALL, schedule="constant", epochs=3)])
def test_a_finished_run_goes_on_as_the_longer_run_would(recipe, capsys):
    short = fit(replace(recipe, epochs=1), net(), out="run")
    assert short.summary["best_validation_epoch"] == 0
    longer = fit(recipe, Net(), out="run", resume=True)
    assert "The run in run goes on from epoch 1 to 3" in capsys.readouterr().out
    alone = fit(recipe, net(), out="alone")
    check_same(alone, longer)
    stored, expected = (load_recipe(f"{name}/recipe.yaml") for name in ("run", "alone"))
    assert stored == expected
    for key in ("final_test_top1", "best_validation_epoch", "best_test_top1"):
        assert longer.summary[key] == alone.summary[key]
    assert fit(recipe, Net(), out="run", resume=True).summary == longer.summary


def test_replicas_go_on_too():
    recipe = replace(SMALL, model="resnet8", schedule="constant", replicas=2)
    short = fit(replace(recipe, epochs=1), out="run")
    longer = fit(recipe, out="run", resume=True)
    assert longer.summary["final_test_top1"] != short.summary["final_test_top1"]
    for folder in (longer.folder / f"seed-{seed}" for seed in range(2)):
        assert len(rows(folder)) == load_recipe(str(folder / "recipe.yaml")).epochs == 2


def test_a_cosine_schedule_is_refused_and_nothing_changes():
    run = fit(replace(SMALL, epochs=1), net(), out="run")
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(ValueError, match=r"cosine schedule of 1 epochs.*cannot go on to 2"):
        fit(SMALL, Net(), out="run", resume=True)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_fewer_epochs_and_other_changes_are_refused():
    run = fit(replace(STEP, epochs=2), net(), out="run")
    for changes in ({"epochs": 1}, {"epochs": 3, "lr": 0.2}):
        with pytest.raises(ValueError, match=r"another recipe: epochs \(2 there"):
            fit(replace(STEP, **changes), Net(), out="run", resume=True)
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary
