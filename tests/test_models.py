"""The CIFAR networks: counts, names, defaults, behaviour."""

import copy

import pytest
import torch
from torch import nn

import spem
from spem import create_model
from spem.norm import GatedBatchNorm2d

# (depth, classes) -> (plain, SPEM); METHODS of the paper's group, SPEM of basic blocks by 4C + 2.
COUNTS = {
    ("resnet20", 10): (272_474, 272_474 + 3 * 448 + 18),
    ("resnet20", 100): (278_324, 278_324 + 3 * 448 + 18),
    ("resnet32", 10): (466_906, 466_906 + 5 * 448 + 30),
    ("resnet32", 100): (472_756, 472_756 + 5 * 448 + 30),
    ("resnet56", 10): (855_770, 855_770 + 9 * 448 + 54),
    ("resnet56", 100): (861_620, 861_620 + 9 * 448 + 54),
    ("resnet110", 10): (1_730_714, 1_730_714 + 18 * 448 + 108),
    ("resnet110", 100): (1_736_564, 1_736_564 + 18 * 448 + 108),
    ("resnet83", 10): (869_530, 885_712),
    ("resnet83", 100): (892_660, 908_842),
    ("resnet164", 10): (1_704_154, 1_736_518),
    ("resnet164", 100): (1_727_284, 1_759_648),
    ("preresnet20", 10): (272_282, 272_282 + 3 * 448 + 18),
    ("preresnet110", 100): (1_736_372, 1_736_372 + 18 * 448 + 108),
    ("preresnet164", 10): (1_703_258, 1_735_622),
    ("preresnet164", 100): (1_726_388, 1_758_752),
}


@pytest.mark.parametrize(("name", "classes"), COUNTS)
def test_parameter_counts(name, classes):
    for gate, count in zip((None, "spem"), COUNTS[name, classes], strict=True):
        with torch.device("meta"):
            model = create_model(name, gate, classes)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "block"),
    [("resnet29", "bottleneck"), ("resnet83", "bottleneck"), ("resnet164", "bottleneck")]
    + [(f"resnet{depth}", "basic") for depth in (8, 20, 32, 56, 110, 116)],
)
def test_the_default_block(name, block):
    with torch.device("meta"):
        model = create_model(name)
    assert model.config["block"] == block


def test_a_block_can_be_chosen():
    assert create_model("resnet20", block="bottleneck").config["block"] == "bottleneck"


@pytest.mark.parametrize("name", ["resnet8", "resnet11", "preresnet8", "preresnet11"])
@pytest.mark.parametrize("gate", [None, "spem"])
def test_any_size_from_eight_pixels_and_any_channels(name, gate):
    model = create_model(name, gate, num_classes=7, in_channels=1)
    for size in ((8, 8), (9, 13), (32, 32)):
        assert model(torch.randn(2, 1, *size)).shape == (2, 7)


def test_names_are_those_of_the_field():
    keys = set(create_model("resnet29", "spem").state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv3.weight", "fc.bias"} <= keys
    assert {"layer1.0.downsample.0.weight", "layer3.2.bn3.gate.pool_weight"} <= keys
    plain = set(create_model("resnet29").state_dict())
    assert keys - plain == {key for key in keys if ".gate." in key}
    assert "bn.weight" in create_model("preresnet20").state_dict()


def test_every_norm_is_ours_with_or_without_a_gate():
    for gate in (None, "spem"):
        for name in ("resnet8", "preresnet8"):
            norms = [m for m in create_model(name, gate).modules() if isinstance(m, nn.BatchNorm2d)]
            assert norms
            assert all(type(m) is GatedBatchNorm2d for m in norms)


@pytest.mark.parametrize("name", ["resnet20", "resnet29", "preresnet20", "preresnet29"])
def test_identity_gates_leave_the_logits_as_they_are(name):
    plain = create_model(name)
    gated = create_model(name, "spem", init="identity")
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".gate." in key for key in missing)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain(x), gated(x))
    assert torch.equal(plain.eval()(x), gated.eval()(x))


def unfuse(model):
    """Replace every GatedBatchNorm2d by BatchNorm2d, gate, addition and ReLU as separate steps."""

    class Unfused(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = nn.BatchNorm2d(norm.num_features).double()
            own = norm.state_dict()
            self.norm.load_state_dict({k: v for k, v in own.items() if "gate." not in k})
            self.gate = norm.gate

        def forward(self, x, residual=None, relu=False):
            out = self.norm(x)
            out = out if self.gate is None else self.gate(out)
            out = out if residual is None else out + residual
            return torch.relu(out) if relu else out

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GatedBatchNorm2d):
                setattr(module, name, Unfused(child))
    return model


@pytest.mark.parametrize("name", ["resnet8", "resnet11", "preresnet11"])
def test_a_network_trains_as_its_unfused_twin(name):
    model = create_model(name, "spem").double()
    twin = unfuse(copy.deepcopy(model))
    histories = []
    for network in (model, twin):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
        history = []
        for _ in range(30):
            x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
            loss = nn.functional.cross_entropy(network(x), torch.randint(10, (4,)))
            optimizer.zero_grad()
            (loss + spem.auxiliary_loss(network)).backward()
            optimizer.step()
            history.append(loss.item())
        histories.append(history)
    torch.testing.assert_close(*histories, rtol=1e-7, atol=1e-7)


def test_the_convolutions_start_he_out():
    weight = create_model("resnet164").layer3[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_a_resnet164_starts_with_27_squares():
    with torch.device("meta"):
        model = create_model("resnet164", "spem")
    gates = [m for m in model.modules() if isinstance(m, spem.Gate)]
    assert len(gates) == 54
    assert all(gate.pool_weight.numel() == 2 for gate in gates)


def test_deterministic_algorithms_suffice():
    torch.use_deterministic_algorithms(True)
    try:
        create_model("resnet8", "spem")(torch.randn(2, 3, 8, 8)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet"}, "unknown model 'resnet'; known: resnetDEPTH"),
        ({"name": "resnext20"}, "unknown model 'resnext20'"),
        ({"name": "resnet21"}, "depth 21 is neither 6n"),
        ({"name": "resnet2"}, "depth 2 of 'resnet2' is not 6n"),
        ({"name": "resnet20", "block": "wide"}, "unknown block 'wide'"),
        ({"name": "resnet32", "block": "bottleneck"}, "depth 32 of 'resnet32' is not 9n"),
        ({"name": "resnet20", "gate": "spme"}, "unknown gate 'spme'; known: spem"),
        ({"name": "resnet20", "num_classes": 0}, "num_classes is 0"),
        ({"name": "resnet20", "in_channels": 0}, "in_channels is 0"),
        ({"name": "resnet20", "alpha": 0.1}, r"\['alpha'\] were given without a gate"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


def test_images_that_do_not_fit_are_refused():
    model = create_model("resnet8")
    for shape in ((1, 1, 32, 32), (1, 3, 7, 8), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
            model(torch.ones(shape))
