"""The supernet and the search for a placement."""

import json
import re

import pytest
import torch

import spem
from spem import create_model, explain
from spem.cli import main
from spem.train import metrics
from spem.train.placement_search import Search, search_masks, search_placement
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.supernet import Supernet

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def supernet(gate="se", **options):
    torch.manual_seed(0)
    return Supernet(create_model("resnet14"), gate, **options)


def test_a_mask_of_zeros_is_the_plain_network():
    net = supernet().eval()
    assert torch.equal(net(X), net.model(X))
    assert net.mask == [0] * 6


@pytest.mark.parametrize("gate", ["se", "spem"])
def test_a_mask_equals_a_network_with_the_shared_gate_in_those_blocks(gate):
    net = supernet(gate).eval()
    for parameter in net.units.parameters():
        torch.nn.init.normal_(parameter)
    net.mask = [1, 0, 0, 1, 1, 1]
    twin = create_model("resnet14", gate, mask=net.mask).eval()
    spem.load_backbone(twin, net.model.state_dict())
    for name, bit in zip(net.names, net.mask, strict=True):
        if bit:
            unit = net.units[name.split(".")[0]]
            twin.get_submodule(name).gate.load_state_dict(unit.state_dict())
    assert torch.equal(net(X), twin(X))


def test_dianet_starts_at_the_first_active_block_and_keeps_nothing():
    net = supernet("dianet").eval()
    for parameter in net.units.parameters():
        torch.nn.init.normal_(parameter)
    net.mask = [0, 1, 0, 0, 0, 0]
    alone = create_model("resnet14", "dianet", mask=net.mask).eval()
    spem.load_backbone(alone, net.model.state_dict())
    alone.layer1[1].bn2.gate.load_state_dict(net.units["layer1"].state_dict())
    assert torch.equal(net(X), alone(X))
    assert torch.equal(net(X), net(X))


def test_training_draws_masks_from_the_global_generator():
    net = supernet().train()
    outputs = []
    for seed in (1, 1, 2, 3):
        torch.manual_seed(seed)
        outputs.append(net(X))
    assert torch.equal(outputs[0], outputs[1])
    assert any(not torch.equal(outputs[0], other) for other in outputs[2:])
    assert next(name for name, _ in net.units.named_parameters()).startswith("layer1")
    assert not [name for name in net.model.state_dict() if "gate" in name]


def test_the_controller_finds_the_blocks_that_help():
    torch.manual_seed(0)
    good, bad, told = [1, 0, 0, 1, 0, 1], [], []

    def accuracy(mask):
        bad.append(mask)
        return 0.5 + 0.06 * sum(m * (1 if g else -1) for m, g in zip(mask, good, strict=True))

    found = search_masks(accuracy, 6, Search(steps=200), told.append)
    assert found.mask == good
    assert found.accuracy == (pytest.approx(0.68), pytest.approx(0.5))
    assert len(found.history) == 200
    assert len(bad) == len({tuple(mask) for mask in bad})
    assert [line.partition(":")[0] for line in told] == [
        f"search step {step}/200" for step in range(20, 201, 20)
    ]
    assert re.fullmatch(r".*validation top-1 [\d.]+%, \d+% of the blocks.*, 0 s left", told[-1])


def test_sparsity_alone_removes_all_gates():
    torch.manual_seed(0)
    assert search_masks(lambda mask: 0.5, 4, Search(steps=150, sparsity=20)).mask == [0] * 4


def test_it_runs_end_to_end_on_digits(tmp_path):
    recipe = load_recipe(
        "digits", model="resnet8", gate="none", epochs=2, progress=False, threads=1
    )
    results = [
        search_placement(recipe, "se", settings=Search(steps=5), out=str(tmp_path / str(i)))
        for i in range(2)
    ]
    assert results[0][:4] == results[1][:4]
    record = json.loads((tmp_path / "0" / "placement.json").read_text())
    assert record["mask"] == results[0].mask
    assert record["blocks"] == ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]
    create_model("resnet8", "se", mask=record["mask"])


def test_the_commands_search_and_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [
        "--model",
        "resnet8",
        "--epochs",
        "1",
        "--threads",
        "1",
        "--no-progress",
        "--batch-size",
        "256",
    ]
    assert main(["search-placement", *short, "--steps", "2", "--out", "found"]) == 0
    assert "gated blocks" in capsys.readouterr().out
    assert main(["search-placement", *short, "--steps", "2", "--out", "found"]) == 2
    assert "found exists" in capsys.readouterr().err
    again = ["search-placement", *short, "--steps", "1", "--out", "found", "--overwrite"]
    assert main(again) == 0
    assert main(["train", *short, "--gate", "spem", "--out", "run"]) == 0
    assert main(["gate-report", "run"]) == 0
    assert "layer1.0.bn2.gate" in capsys.readouterr().out
    assert main(["gate-report", "run", "--fold", "1e9", "--out", "folded"]) == 0
    assert "folded 3 of 3 gates" in capsys.readouterr().out
    assert main(["evaluate", "folded"]) == 0
    assert main(["gate-report", "run", "--fold", "1", "--out", "folded"]) == 2
    assert "folded exists" in capsys.readouterr().err
    assert main(["gate-report", "run", "--out", "other"]) == 2
    assert "--fold" in capsys.readouterr().err


@pytest.mark.parametrize("validation", ["0.1", "none"])
def test_gates_are_measured_on_other_images_than_those_that_judge(
    tmp_path, monkeypatch, validation
):
    monkeypatch.chdir(tmp_path)
    short = "--model resnet8 --gate se --epochs 1 --threads 1 --no-progress --batch-size 256"
    assert main(["train", *short.split(), "--validation", validation, "--out", "run"]) == 0
    measured, judged = [], []
    report, evaluate = explain.gate_report, metrics.evaluate

    def spied_report(model, batches):
        batches = list(batches)
        measured.append(sum(len(labels) for _, labels in batches))
        return report(model, batches)

    def spied_evaluate(model, batches):
        result = evaluate(model, batches)
        judged.append(result["images"])
        return result

    monkeypatch.setattr(explain, "gate_report", spied_report)
    monkeypatch.setattr(metrics, "evaluate", spied_evaluate)
    assert main(["gate-report", "run", "--fold", "1e9"]) == 0
    assert measured == [144 if validation == "0.1" else 1437]
    assert judged == [360, 360]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Supernet(create_model("resnet8", "se"), "se"),
            "a GatedBatchNorm2d without",
        ),
        (lambda: Supernet(create_model("preresnet8"), "se"), "a GatedBatchNorm2d without"),
        (lambda: supernet("spa", variant="tmm-b", reduction=4), "reads the block's input"),
        (lambda: Search(steps=0), "steps is 0"),
        (
            lambda: search_placement(load_recipe("digits", validation=None, gate=None), "se"),
            "validation is none",
        ),
        (lambda: search_placement(load_recipe("digits"), "se"), "the recipe's gate is 'spem'"),
        (lambda: search_placement(Recipe(mask=[1, 0]), "se"), "the recipe's mask is"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
