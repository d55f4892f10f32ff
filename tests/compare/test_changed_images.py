"""A folder of images that changes after a run or a comparison began: noticed, not mixed."""

from dataclasses import replace

import pytest
from pictures import paint
from runs import SMALL

from spem.compare import launchers, runner
from spem.compare.study import Study
from spem.train.fitting import fit


@pytest.fixture
def photographs(tmp_path):
    for number in range(12):
        paint(tmp_path / "photographs" / "dark" / f"{number}.png", number)
        paint(tmp_path / "photographs" / "light" / f"{number}.png", 200 + number)
    return tmp_path / "photographs"


def add(folder):
    paint(folder / "dark" / "0a.png", 77)


def remove(folder):
    (folder / "dark" / "3.png").unlink()


def change(folder):
    paint(folder / "light" / "5.png", 99)


def rename_a_class(folder):
    (folder / "light").rename(folder / "bright")


CHANGES = pytest.mark.parametrize("change_folder", [add, remove, change, rename_a_class])


@CHANGES
@pytest.mark.parametrize("folds", [{}, {"folds": 3, "fold": 1}])
def test_a_run_does_not_go_on(tmp_path, photographs, change_folder, folds):
    keys = {"data": str(photographs), "model": "resnet8", "image_size": 8, "schedule": "constant"}
    recipe = replace(SMALL, **keys, **folds, batch_size=8, epochs=1)
    fit(recipe, out=tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    change_folder(photographs)
    with pytest.raises(ValueError, match=r"the images of .* are not those that the run of"):
        fit(replace(recipe, epochs=2), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_run_goes_on_where_nothing_changed(tmp_path, photographs):
    keys = {"data": str(photographs), "model": "resnet8", "image_size": 8, "schedule": "constant"}
    recipe = replace(SMALL, **keys, batch_size=8, epochs=1)
    fit(recipe, out=tmp_path / "run")
    fit(replace(recipe, epochs=2), out=tmp_path / "run", resume=True)
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


@CHANGES
@pytest.mark.parametrize("gates", [["none", "se"], ["se"]])
def test_a_comparison_does_not_mix_them(tmp_path, photographs, change_folder, gates):
    keys = {"image_size": 8, "batch_size": 8, "epochs": 1, "device": "cpu", "threads": 1}

    def compare(gates):
        study = Study(
            gates=gates, models="resnet8", data=str(photographs), folds=2, config="cifar_quick"
        )
        plan = study.plan(**keys, crop=0, warmup_epochs=0.5, progress=False)
        return runner.run_comparison(plan, tmp_path / "out", launchers.run_here, costs=False)

    assert compare(["none"]) == 0
    records = (tmp_path / "out" / "records.jsonl").read_bytes()
    change_folder(photographs)
    with pytest.raises(ValueError, match=r"holds 'none' of other images of .*photographs"):
        compare(gates)
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == records
