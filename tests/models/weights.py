"""What must hold of the folder of a bundled network."""

import json
import re

import torch
from safetensors.torch import load_file


def check_weights(model, folder):
    own, stored = model.state_dict(), load_file(folder / "model.safetensors")
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[key], stored[key]) for key in own)


def example(folder):
    """The network that the Python example of a model card builds."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    names = {}
    exec(code[1], names)
    return names["model"]


def check_card(folder):
    """A card repeats its folder's files, and names no place of the machine that trained."""
    text = (folder / "README.md").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert f"# {folder.name}\n" in text
    assert f"trained on {config['data']}:" in text
    assert f"of seed {summary['seed']}:" in text
    assert f"| test top-1 | {summary['final_test_top1']} |" in text
    assert f"| {summary['test_top1_at_best_validation']} |" in text
    assert f"{summary['parameters']:,} parameters" in text
    assert (folder / "recipe.yaml").read_text() in text
    assert ", ".join(config["classes"]) in text
    assert "Apache License 2.0" in text
    assert "Krizhevsky" in text or config["data"] == "digits"
    assert not re.search(r"(^|[\s'\"(])/\w", text)
