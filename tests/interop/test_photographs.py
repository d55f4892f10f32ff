"""The page about one's own photographs, as it stands: on crops of two real ones."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

for name in ("timm", "transformers", "pytorch_lightning"):
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


def test_the_examples_in_python_run(photographs):
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, "your-own-photographs.md", "exec"), names)
    assert len(blocks) == 4
    assert names["result"].folder.name == "oaks"
    gate = names["network"].resnet.encoder.stages[0].layers[0].layer[1].normalization.gate
    assert all(p.isfinite().all() for p in gate.parameters())
