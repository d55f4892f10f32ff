"""`spem compare` with networks of other libraries: trained, measured, shown on the page."""

import csv
import json

import pytest
import torch
from PIL import Image

from spem.cli import main
from spem.compare import costs, launchers, runner
from spem.compare.records import Ledger
from spem.compare.study import Study, load_study

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

KEYS = {"threads": 1, "device": "cpu", "progress": False, "precision": "32", "epochs": 1}
KEYS |= {"image_size": 32, "warmup_epochs": 0}
MINE = """
import timm
from spem import register_model

@register_model("mine")
def mine(num_classes, in_channels):
    return timm.create_model("test_resnet", num_classes=num_classes, in_chans=in_channels)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with photographs, weights, a network of Hugging Face and one's own."""
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    for name, level in (("dark", 60), ("light", 160)):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number in range(6):
            noise = torch.randint(-50, 50, (40, 40, 3), generator=draw)
            picture = Image.fromarray((noise + level).byte().numpy())
            picture.save(tmp_path / "photographs" / name / f"{number}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), "weights.pth")
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    config = transformers.ResNetConfig(**sizes, num_labels=7)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "hugging")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_every_table_has_networks_of_other_libraries(place, monkeypatch):
    monkeypatch.setattr(costs, "ROUNDS", 2)
    monkeypatch.setattr(costs, "measure_apart", lambda work, *arguments: work(*arguments))
    models = [
        {"model": "timm:test_resnet", "label": "timm", "weights": "weights.pth"},
        {"model": f"hf:{place / 'hugging'}", "label": "hugging"},
        {"model": "torchvision:mnasnet0_5", "label": "torchvision"},
        "mine",
    ]
    gates = ["none", {"gate": "spem", "at": "stage", "label": "stages"}]
    study = Study(models=models, gates=gates, data="photographs", folds=2, config="finetune")
    plan = study.plan(**KEYS, pretrained=False, **{"import": ["mine.py"]})
    assert runner.run_comparison(plan, place / "out", launchers.run_here) == 0
    records = Ledger(place / "out").records.values()
    assert len(records) == 4 * 2 * 2
    starts = [r["recipe"]["gate_options"] for r in records if r["gate"] == "stages"]
    assert starts == [{"init": "identity"}] * 4 * 2
    lines = [json.loads(line) for line in (place / "out" / "costs.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 2
    assert all(line["inference"]["median"] > 0 for line in lines)
    assert main(["report", "out"]) == 0
    with (place / "out" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"timm", "hugging", "torchvision", "mine"}
    assert {row["runs_are"] for row in rows} == {"folds that share training images"}
    page = (place / "out" / "report.html").read_text()
    assert page.count("Most frequent mistakes") + page.count("No mistake.") >= 4
    folder = next(r for r in plan if r.row == "stages").folder_in(place / "out")
    assert main(["gate-report", str(folder)]) == 0


def test_a_network_that_no_library_knows_is_refused_before_anything_is_written(place, capsys):
    words = ["--study", "finetune", "--data", "photographs", "--out", "out"]
    assert main(["compare", *words, "--model", "timm:resnt18"]) == 2
    assert "resnet18" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_the_backbone_says_how_the_pictures_of_the_study_are_prepared():
    recipe = load_study("finetune").plan()[0].recipe
    assert (recipe.image_size, recipe.mean) == (224, [0.485, 0.456, 0.406])
