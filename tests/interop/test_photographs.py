"""The page about one's own photographs, as it stands: on crops of two real ones."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from spem.cli import main

timm = pytest.importorskip("timm")
for name in ("transformers", "pytorch_lightning"):
    pytest.importorskip(name)

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-photographs.md").read_text(encoding="utf-8")
SIDE = 160


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A working directory with `photos`, two classes of 30 crops."""
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    for name in ("china", "flower"):
        picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (tmp_path / "photos" / name).mkdir(parents=True)
        for crop in range(30):
            x, y = numbers.integers(0, [picture.width - SIDE, picture.height - SIDE]).tolist()
            picture.crop((x, y, x + SIDE, y + SIDE)).save(f"photos/{name}/{crop:02d}.jpg")


# For the commands of the page: a network that is trained in seconds, with weights from a file.
SMALL = ["--model", "timm:test_resnet", "--no-pretrained", "--weights", "weights.pth"]
SMALL += ["--epochs", "1", "--warmup-epochs", "0.5", "--freeze-epochs", "none"]
SMALL += ["--image-size", "64"]
FEW = ["--small", "--gates", "none", "spem", "--folds", "2", "--no-costs"]


def test_the_commands_go_from_photographs_to_predictions(photographs, capsys):
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), "weights.pth")
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line.split()[1:] for block in blocks for line in block.splitlines()]
    assert [command[0] for command in commands] == [
        *("data", "compare", "report", "train", "evaluate", "predict")
    ]
    for command in commands:
        small = {"compare": SMALL + FEW, "train": SMALL}.get(command[0], [])
        assert main([*command, *small]) == 0, command
    assert "attention/report.html" in capsys.readouterr().out
    with Path("predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert all(0 <= float(row["probability.china"]) <= 1 for row in rows)


def test_the_examples_in_python_run(photographs):
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, "your-own-photographs.md", "exec"), names)
    assert len(blocks) == 4
    assert names["result"].folder.name == "oaks"
    gate = names["network"].resnet.encoder.stages[0].layers[0].layer[1].normalization.gate
    assert all(p.isfinite().all() for p in gate.parameters())
