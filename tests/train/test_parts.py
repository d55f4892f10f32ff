"""Backbone, gates and classifier, and the layers of a network, each with its own learning rate."""

from copy import deepcopy

import pytest
import torch
from gatings import EACH_GATE, OPTIONS
from torch import nn
from torch.optim import SGD, AdamW, Muon

from spem import attach, create_model
from spem.gates import Attention
from spem.train.muon import MuonAdamW
from spem.train.optimizer import create_optimizer, create_schedule
from spem.train.parts import classifier_parameters, gate_parameters, layer_parameters
from spem.train.recipe import Recipe


def rates(optimizer):
    return {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("gate", [None, *EACH_GATE])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_every_part_has_its_rate_and_every_exempt_parameter_no_decay(gate, optimizer):
    model = create_model("resnet8", gate, **OPTIONS.get(gate, {}))
    factors = {"backbone": 0.1, "gates": 2, "classifier": 10}
    recipe = Recipe(optimizer=optimizer, lr=0.5, lr_factors=factors, weight_decay=0.3)
    made = create_optimizer(model, recipe)
    of_each, gates = rates(made), gate_parameters(model)
    assert sum(len(group["params"]) for group in made.param_groups) == len(of_each)
    assert {*of_each} == {*model.parameters()}
    for name, parameter in model.named_parameters():
        part = "gates" if parameter in gates else "classifier" if "fc." in name else "backbone"
        assert of_each[parameter] == pytest.approx(0.5 * factors[part]), name
    exempt = {
        module.get_parameter(name)
        for module in model.modules()
        if isinstance(module, Attention)
        for name in module.no_weight_decay
    }
    for group in made.param_groups:
        assert all(group["weight_decay"] == 0.3 * (p not in exempt) for p in group["params"])


@pytest.mark.parametrize("gate", [None, *EACH_GATE])
@pytest.mark.parametrize(("name", "layers"), [("resnet8", 5), ("preresnet8", 5), ("vgg11", 9)])
def test_the_rate_falls_from_layer_to_layer_towards_the_input(gate, name, layers):
    if gate == "dianet" and name == "vgg11":
        pytest.skip("its stages have no blocks to share a gate")
    model = create_model(name, gate, **OPTIONS.get(gate, {}))
    found = layer_parameters(model)
    assert len(found) == layers
    assert sorted(map(id, model.parameters())) == sorted(id(p) for layer in found for p in layer)
    of_each = rates(create_optimizer(model, Recipe(lr=1.0, layer_decay=0.5)))
    for depth, layer in enumerate(reversed(found)):
        assert {of_each[p] for p in layer} == {0.5**depth}


def test_a_layer_is_a_block_or_a_convolution_with_its_norm():
    layers = layer_parameters(create_model("resnet8", "se", reduction=4))
    names = {p: name for name, p in create_model("resnet8", "se").named_parameters()}
    assert len(names) == sum(map(len, layers))
    model = create_model("densenet22")
    names = {p: name.rpartition(".")[0] for name, p in model.named_parameters()}
    first = [names[layer[0]] for layer in layer_parameters(model)]
    assert first[:4] == ["conv1", "blocks.0.0.bn1", "blocks.0.1.bn1", "blocks.0.2.bn1"]
    assert first[-1] == "fc"


def test_a_network_without_numbered_blocks_has_its_layers_one_by_one():
    layers = [
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3),
        nn.Flatten(),
        nn.Linear(4, 3),
    ]
    assert [len(layer) for layer in layer_parameters(nn.Sequential(*layers))] == [4, 2, 2]


@pytest.mark.parametrize("gate", EACH_GATE)
def test_gates_in_the_norms_of_a_given_network_are_counted_once_and_silently(gate):
    norm = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
    model = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    attach(model, gate, at="0.1", **OPTIONS.get(gate, {}))
    layers = layer_parameters(model)  # a warning is an error here
    assert sorted(id(p) for layer in layers for p in layer) == sorted(map(id, model.parameters()))


def test_a_classifier_that_is_a_convolution_is_found_and_a_network_with_none_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 1), nn.Flatten())
    assert classifier_parameters(model) == {*model[1].parameters()}
    with pytest.raises(
        ValueError, match=r"classifier of this BatchNorm2d cannot be found.*leave out"
    ):
        create_optimizer(nn.BatchNorm2d(1), Recipe(lr_factors={"gates": 2}))


def test_without_factors_the_groups_are_those_of_earlier_versions():
    made = create_optimizer(create_model("resnet8", "srm"), Recipe())
    assert type(made) is SGD
    assert [group["weight_decay"] for group in made.param_groups] == [5e-4, 0.0]


def test_the_schedule_keeps_the_ratio_of_the_rates():
    recipe = Recipe(lr_factors={"backbone": 0.1}, schedule="onecycle", warmup_epochs=0.5, epochs=2)
    optimizer = create_optimizer(create_model("resnet8"), recipe)
    schedule = create_schedule(optimizer, recipe, 4)
    for _ in range(8):
        low, high = sorted({group["lr"] for group in optimizer.param_groups})
        assert low == pytest.approx(0.1 * high, rel=1e-3)
        optimizer.step()
        schedule.step()


def test_adamw_has_the_recipes_momentum_as_its_first_beta():
    made = create_optimizer(nn.Conv2d(1, 1, 1), Recipe(optimizer="adamw", momentum=0.8))
    assert type(made) is AdamW
    assert made.param_groups[0]["betas"] == (0.8, 0.999)
    create_optimizer(nn.Conv2d(1, 1, 1), Recipe(optimizer="adamw", momentum=0.0))


def _with_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_steps_as_pytorchs_on_the_flattened_weights_and_adamw_on_the_others(layout):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5), nn.Linear(5, 3)
    ).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    own = create_optimizer(model, Recipe(optimizer="muon", lr=0.01, weight_decay=0.1))
    assert isinstance(own, MuonAdamW)
    hidden = {"1.weight", "3.weight"}  # not the first, of one channel, nor the classifier
    flat = {
        n: nn.Parameter(p.detach().flatten(1).clone())
        for n, p in model.named_parameters()
        if n in hidden
    }
    rest = {
        n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters() if n not in hidden
    }
    settings = {"lr": 0.01, "weight_decay": 0.1}
    muon = Muon(flat.values(), momentum=0.9, adjust_lr_fn="match_rms_adamw", **settings)
    adamw = AdamW(rest.values(), **settings)
    for seed in range(3):
        _with_gradients(model, seed)
        for name, parameter in model.named_parameters():
            twin = flat.get(name, rest.get(name))
            twin.grad = parameter.grad.reshape(twin.shape)
        for each in (own, muon, adamw):
            each.step()
    for name, parameter in model.named_parameters():
        expected = flat.get(name, rest.get(name))
        # Muon computes in bfloat16, and in the NHWC format sums in another order.
        tolerance = 1e-2 if name in flat else 1e-6
        difference = (parameter.reshape(expected.shape) - expected).norm() / expected.norm()
        assert difference < tolerance, name


def test_muon_takes_no_tables_and_no_depthwise_convolutions():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 3), nn.Linear(6, 3))
    model.relative_position_bias_table = nn.Parameter(torch.randn(9, 4))
    groups = create_optimizer(model, Recipe(optimizer="muon")).param_groups
    taken = [p for group in groups if group["muon"] for p in group["params"]]
    assert [id(p) for p in taken] == [id(model[1].weight)]


def test_muon_goes_on_from_its_stored_state():
    torch.manual_seed(0)
    recipe = Recipe(optimizer="muon", lr=0.01)
    one, two = (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 3)) for _ in range(2))
    first, second = create_optimizer(one, recipe), create_optimizer(two, recipe)
    for seed in (0, 1):
        _with_gradients(one, seed)
        first.step()
    two.load_state_dict(one.state_dict())
    second.load_state_dict(deepcopy(first.state_dict()))
    for model, optimizer in ((one, first), (two, second)):
        _with_gradients(model, 2)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_rates_that_are_not_allowed_are_named():
    for value in ({"body": 1}, {"gates": -1}, {"gates": "1"}, [1]):
        with pytest.raises(
            ValueError, match="lr_factors must be a mapping of backbone, gates, class"
        ):
            Recipe(lr_factors=value)
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\), got 1"):
        Recipe(layer_decay=1)
    with pytest.raises(ValueError, match="optimizer must be sgd with cuda_graph, got 'adamw'"):
        Recipe(optimizer="adamw", cuda_graph=True)
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; known: adamw"):
        Recipe(optimizer="adam")


def test_a_network_that_names_its_heads_is_believed():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.head, self.head_dist = nn.Linear(8, 5), nn.Linear(8, 5)
            self.unused = nn.Linear(8, 8)

        def get_classifier(self):
            return self.head, self.head_dist

    model = Heads()
    heads = {*model.head.parameters(), *model.head_dist.parameters()}
    assert classifier_parameters(model) == heads
    model.get_classifier = lambda: nn.Identity()  # of a network without a classifier
    assert classifier_parameters(model) == {*model.unused.parameters()}
