"""The trained networks of the package: which there are, how they are loaded and published."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import SMALL
from safetensors.torch import load_file, save_file
from weights import check_card, check_weights, example

from spem import create_model, load_backbone
from spem._extras import install_command
from spem.cli import main
from spem.models import pretrained
from spem.train.fitting import fit
from spem.train.recipe_files import load_recipe

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "publish_weights.py"
NAME = "resnet8-spem-digits"
OPTIONS = {"in_channels": 1, "pretrained": "digits", "mixing": "sigmoid"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with an option of its gate."""
    keys = {"epochs": 1, "warmup_epochs": 0, "model": "resnet8", "gate": "spem", "seed": 3}
    recipe = replace(SMALL, **keys, data_dir="elsewhere", gate_options={"mixing": "sigmoid"})
    return fit(recipe, out=tmp_path_factory.mktemp("runs") / "tiny").folder


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def bundled(run, script, monkeypatch, tmp_path):
    """The folder of that run's network, as if it were the only one of the package."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return script["publish"](run, tmp_path / "weights")


def test_a_network_gets_the_bundled_weights(bundled):
    plain = create_model("resnet8", "spem", 10, 1, mixing="sigmoid")
    torch.manual_seed(5)
    model = create_model("resnet8", "spem", **OPTIONS)
    drawn = torch.rand(1)
    check_weights(model, bundled)
    assert model.config == plain.config
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.manual_seed(5)
    create_model("resnet8", "spem", 10, 1, mixing="sigmoid")
    assert torch.equal(torch.rand(1), drawn)


def test_the_classes_follow_the_weights(bundled):
    file = bundled / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_classes": 7}))
    with pytest.raises(ValueError, match="num_classes is 10, but resnet8-spem-digits has 7 "):
        create_model("resnet8", "spem", 10, **OPTIONS)
    weights = load_file(bundled / "model.safetensors")
    weights |= {key: weights[key][:7] for key in ("fc.weight", "fc.bias")}
    save_file(weights, bundled / "model.safetensors")
    model = create_model("resnet8", "spem", **OPTIONS)
    assert model.config.num_classes == model.fc.out_features == 7
    assert create_model("resnet8", "spem").fc.out_features == 10


@pytest.mark.parametrize(
    "spelled",
    [{"block": "basic"}, {"placement": "residual"}, {"mask": [1, 1, 1]}, {"init": "paper"}],
)
def test_defaults_may_be_spelled_out(bundled, spelled):
    check_weights(create_model("resnet8", "spem", 10, **OPTIONS, **spelled), bundled)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"num_classes": 0}, "num_classes is 0, must be a whole number"),
        ({"num_classes": 7}, r"num_classes is 7, but .* has 10 classes: .*load_backbone"),
        ({"in_channels": 3}, f"in_channels is 3, but {NAME} was trained with 1"),
        ({"name": "resnet14"}, f"unknown pretrained network 'resnet14-spem-digits'; known: {NAME}"),
        ({"placement": "norm"}, f"placement is 'norm', but {NAME} was trained with 'residual'"),
        ({"mask": [1, 0, 1]}, r"mask is \[1, 0, 1\], but .* was trained with None"),
        ({"mixing": "squared"}, f"mixing is 'squared', but {NAME} was trained with 'sigmoid'"),
        ({"init": "identity"}, f"init is 'identity', but {NAME} was trained with 'paper'"),
        ({"gate": "se"}, f"unknown pretrained network 'resnet8-se-digits'; known: {NAME}$"),
        ({"pretrained": "cifar11"}, "unknown pretrained network 'resnet8-spem-cifar11'; known"),
        ({"pretrained": "../digits"}, r"unknown pretrained network 'resnet8-spem-\.\./digits'"),
        ({"pretrained": True}, "unknown pretrained network 'resnet8-spem-True'"),
        ({"name": "resnt8"}, "unknown model 'resnt8'"),
        ({"gate": "spme"}, "unknown gate 'spme'"),
    ],
)
def test_another_network_is_refused(bundled, changed, sentence):
    arguments = {"name": "resnet8", "gate": "spem", **OPTIONS} | changed
    if arguments["gate"] == "se":
        del arguments["mixing"]
    with pytest.raises(ValueError, match=sentence):
        create_model(**arguments)


def test_where_nothing_is_bundled_no_name_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "absent")
    with pytest.raises(ValueError, match=r"network 'resnet20-spem-cifar10'; known: none$"):
        create_model("resnet20", "spem", pretrained="cifar10")
    with pytest.raises(FileNotFoundError, match=r"no folder nowhere, .*; known: none$"):
        pretrained.find_run("nowhere")


def test_another_block_is_refused(bundled):
    file = bundled / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block": "bottleneck"}))
    with pytest.raises(ValueError, match=r"block is 'basic', but .* trained with 'bottleneck'"):
        create_model("resnet8", "spem", **OPTIONS)


def test_a_plain_network_is_looked_for_by_its_name(bundled):
    with pytest.raises(ValueError, match="unknown pretrained network 'resnet8-plain-digits'"):
        create_model("resnet8", in_channels=1, pretrained="digits")


def test_the_way_to_other_classes_is_the_one_that_is_named(bundled):
    other = create_model("resnet8", "spem", 7, 1, mixing="sigmoid")
    head = other.fc.weight.clone()
    trained = create_model("resnet8", "spem", **OPTIONS)
    load_backbone(other, trained.state_dict(), ignore=["fc.*"])
    own, loaded = other.state_dict(), trained.state_dict()
    assert all(torch.equal(own[key], loaded[key]) for key in own if not key.startswith("fc."))
    assert torch.equal(other.fc.weight, head)


def test_without_the_extra_only_pretrained_is_refused():
    program = (
        "import sys; sys.modules['safetensors'] = None; import spem; spem.create_model('resnet8')\n"
        "try: spem.create_model('resnet8', 'spem', 10, pretrained='digits')\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed.endswith(f"it comes with the extra 'train': {install_command('train')}\n")


def test_predict_and_evaluate_take_the_name(bundled, capsys, tmp_path):
    Image.new("L", (30, 20), 99).save(tmp_path / "picture.png")
    tables = []
    for place in (NAME, str(bundled)):
        assert main(["predict", place, str(tmp_path / "picture.png"), "--top", "3"]) == 0
        assert main(["evaluate", place]) == 0
        tables.append(capsys.readouterr().out)
    figures = [re.findall(r"│ ([\d.e-]+)", table) for table in tables]  # heads name the places
    assert figures[0] == figures[1]
    assert len(re.findall(r"│ \d +│ [\d.e-]+", tables[0])) == 3
    accuracy = re.search(r"top1\W+([\d.]+)", tables[0])
    summary = json.loads((bundled / "summary.json").read_text())
    assert accuracy
    assert float(accuracy[1]) == pytest.approx(summary["final_test_top1"], abs=1e-3)


def test_a_folder_wins_over_a_name(bundled, capsys, tmp_path):
    (tmp_path / NAME).mkdir()
    assert main(["evaluate", NAME]) == 2
    assert f"{NAME} holds no finished run: config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate nowhere", "predict nowhere a.png"])
def test_an_unknown_name_lists_the_known(bundled, capsys, command):
    assert main(command.split()) == 2
    printed = capsys.readouterr().err
    assert "there is no folder nowhere, nor a bundled network" in printed
    assert printed.endswith(f"; known: {NAME}\n")
    assert printed.count("\n") == 1


def test_a_model_card_says_what_the_run_says(run, bundled):
    names = {"config.json", "model.safetensors", "summary.json", "recipe.yaml", "README.md"}
    assert {path.name for path in bundled.iterdir()} == names
    for name in names - {"recipe.yaml", "README.md"}:
        assert (bundled / name).read_bytes() == (run / name).read_bytes()
    recipe = load_recipe(str(bundled / "recipe.yaml"))
    assert recipe == replace(load_recipe(str(run / "recipe.yaml")), data_dir="data", progress=True)
    check_card(bundled)
    check_weights(example(bundled), bundled)


def test_a_run_without_validation_has_a_card(script, tmp_path):
    recipe = replace(SMALL, epochs=1, warmup_epochs=0, model="resnet8", validation=None)
    run = fit(recipe, out=tmp_path / "run").folder
    card = (script["publish"](run, tmp_path) / "README.md").read_text()
    assert "without attention" in card
    assert "alidation top-1" not in card
    assert "None" not in card.replace("gate=None", "")


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("summary.json", None, "holds no finished run: summary.json is missing"),
        ("config.json", None, "holds no finished run: config.json is missing"),
        ("recipe.yaml", ("\nweights: null", "\nweights: mine"), "started from mine, without which"),
        ("recipe.yaml", ("epochs: 1\n", "epochs: 2\n"), "has 1 of 2 epochs in metrics.csv"),
        ("recipe.yaml", ("data: digits", "data: photos"), "data set that everybody has 'photos'"),
        ("summary.json", ('"final_test_top1": ', '"final_test_top1": 1'), "different accuracies"),
    ],
)
def test_what_nobody_could_check_is_not_published(run, script, tmp_path, file, change, sentence):
    copy = shutil.copytree(run, tmp_path / "copy")
    if change is None:
        (copy / file).unlink()
    else:
        text = (copy / file).read_text()
        assert text.count(change[0]) == 1
        (copy / file).write_text(text.replace(*change))
    with pytest.raises((ValueError, OSError), match=sentence):
        script["publish"](copy, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_large_network_is_not_published(script, tmp_path):
    recipe = replace(SMALL, epochs=1, warmup_epochs=0, model="resnet44", batch_size=1293)
    run = fit(recipe, out=tmp_path / "run").folder
    size = (run / "model.safetensors").stat().st_size
    assert size > 2_000_000
    with pytest.raises(ValueError, match=f"have {size:,} bytes, at most 2,000,000"):
        script["publish"](run, tmp_path / "weights")
