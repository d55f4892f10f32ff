"""The study of fine-tuning on a folder of photographs: from the command to the page."""

import resource

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from spem.cli import main
from spem.compare.records import Ledger
from spem.compare.study import load_study
from spem.models import create_model
from spem.train.recipe_files import load_recipe

CPU = ["--device", "cpu", "--threads", "1", "--no-progress"]


def photograph(folder, digits, count):
    """Write enlarged pictures of handwritten digits, one folder per class."""
    images, labels = load_digits(return_X_y=True)
    for digit in digits:
        place = folder / f"digit-{digit}"
        place.mkdir(parents=True)
        for number, levels in enumerate(images[labels == digit][:count]):
            pixels = (levels.reshape(8, 8) * 255 / 16).astype("uint8")
            Image.fromarray(pixels).convert("RGB").resize((40, 40)).save(place / f"{number}.png")
    return folder


def _processor_seconds():
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in own)


def test_one_seed_of_plain_and_spem_is_one_command(tmp_path, capsys):
    data = photograph(tmp_path / "photographs", range(3), 20)
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(create_model("resnet8", None, num_classes=7).state_dict(), weights)
    out = tmp_path / "out"
    words = ["--study", "finetune", "--small", "--gates", "none", "spem", "--seeds", "1"]
    words += ["--data", str(data), "--model", "resnet8", "--weights", str(weights)]
    words += ["--image-size", "32", "--batch-size", "32", "--no-costs", *CPU]
    assert main(["compare", *words, "--out", str(out)]) == 0
    plain, spem = Ledger(out).records.values()
    assert spem["recipe"]["gate_options"] == {"init": "identity"}
    # The gates start as the identity, and are not frozen with the backbone: both begin alike.
    losses = [record["history"]["train_loss"][0] for record in (plain, spem)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert plain["recipe"]["freeze_epochs"] == 1
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert all(text in page for text in ("Attention in fine-tuning", "Most frequent mistakes"))


@pytest.mark.hard
def test_the_small_form_takes_minutes_on_weights_that_were_learned(tmp_path):
    """Learned on the digits 5 to 9, fine-tuned on 40 pictures each of the digits 0 to 4."""
    data = photograph(tmp_path / "photographs", range(5), 40)
    others = photograph(tmp_path / "others", range(5, 10), 170)
    run = ["--config", "digits", "--gate", "none", "--data", str(others), "--epochs", "8"]
    run += ["--model", "resnet20", "--image-size", "32", "--crop", "2"]
    assert main(["train", *run, *CPU, "--out", str(tmp_path / "run")]) == 0
    words = ["--study", "finetune", "--small", "--data", str(data), "--model", "resnet20"]
    words += ["--weights", str(tmp_path / "run" / "model.safetensors"), *CPU]
    words += ["--image-size", "32"]
    before = _processor_seconds()
    assert main(["compare", *words, "--out", str(tmp_path / "out")]) == 0
    assert _processor_seconds() - before < 2 * 180  # of two cores
    records = [*Ledger(tmp_path / "out").records.values()]
    assert len(records) == 12
    assert sum(r["summary"]["images"]["test"] for r in records if r["gate"] == "plain") == 200
    assert all(record["summary"]["final_test_top1"] > 0.4 for record in records)
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "corrected resampled t-test" in page
    assert "Speeds and memory were measured" in page


def test_the_study_is_what_its_page_says():
    for small, folds, epochs in ((False, 5, 10), (True, 3, 4)):
        plan = load_study("finetune", small).plan()
        assert len(plan) == 4 * folds
        assert list(dict.fromkeys(run.row for run in plan)) == ["plain", "se", "eca", "spem"]
        assert {(run.recipe.epochs, run.recipe.pretrained) for run in plan} == {(epochs, True)}
    assert {run.recipe.fold for run in load_study("finetune", seeds=5).plan()} == {None}


def test_weights_that_are_given_take_the_place_of_pretrained_ones():
    assert load_recipe("finetune").pretrained
    assert not load_recipe("finetune", weights="weights.pth").pretrained
    assert load_recipe("finetune", weights="none").pretrained
    with pytest.raises(ValueError, match="pretrained must be false with weights, got True"):
        load_recipe("finetune", weights="weights.pth", pretrained=True)


def test_a_folder_must_be_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--study", "finetune", "--out", "out"]) == 2
    assert "there is no folder photographs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
