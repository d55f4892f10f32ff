"""The CIFAR networks: counts, names, defaults, behaviour."""

import copy

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, WITHOUT_IDENTITY
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spem
from spem import create_model
from spem.gates import GC, PSA, gate_options
from spem.models.placement import PLACEMENTS
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
PLAIN_COUNTS = {
    "vgg11": (9_231_114, 9_277_284),
    "vgg13": (9_416_010, 9_462_180),
    "vgg16": (14_728_266, 14_774_436),
    "vgg19": (20_040_522, 20_086_692),
    "densenet100": (769_162, 800_032),
    # Classifiers of 100 classes have 90 x 1025 parameters more.
    "attention56": (7_202_794, 7_202_794 + 92_250),
    "attention92": (12_170_730, 12_170_730 + 92_250),
}
# Millions of multiplications of the convolutions and the classifier, for one 32×32 image.
MACS = {"resnet83": 127.3, "resnet164": 247.6, "vgg16": 313.2, "densenet100": 287.9}
# Parameters added to ResNet-164.
ADDED = {
    ("se", ()): 202_104,
    ("se", (("bias", False),)): 193_536,
    ("cbam", ()): 207_504,
    ("eca", ()): 234,
    ("srm", ()): 32_256,
    ("sge", ()): 6_912,
    ("sge", (("groups", 8),)): 864,
    ("dianet", ()): 218_848,
    ("iebn", ()): 24_224,
    ("fcanet", ()): 193_536,
    ("gct", ()): 24_192,
    ("gct", (("placement", "conv"),)): 36_201,
    ("spa", ()): 2_128_896,
    ("spa", (("variant", "tmm-a"),)): 194_706,
    ("sem", ()): 242_820,
    ("lsas", ()): 161_568,
    ("asr", ()): 210_168,
    ("asr", (("both", True),)): 412_272,
    ("danet", (("attention", "position"),)): 1_945_494,
    ("danet", (("attention", "channel"),)): 54,
}


@pytest.mark.parametrize(("name", "classes"), COUNTS)
def test_parameter_counts(name, classes):
    for gate, count in zip((None, "spem"), COUNTS[name, classes], strict=True):
        with torch.device("meta"):
            model = create_model(name, gate, classes)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", PLAIN_COUNTS)
def test_parameter_counts_of_the_other_families(name):
    for classes, count in zip((10, 100), PLAIN_COUNTS[name], strict=True):
        with torch.device("meta"):
            model = create_model(name, None, classes)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", MACS)
def test_multiplications(name):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model(name).eval()(torch.empty(1, 3, 32, 32))
    assert round(counter.get_total_flops() / 2e6, 1) == MACS[name]  # one addition to each


@pytest.mark.parametrize(("gate", "options"), ADDED)
def test_parameters_added_to_resnet164(gate, options):
    with torch.device("meta"):
        model = create_model("resnet164", gate, **dict(options))
    assert sum(p.numel() for p in model.parameters()) == 1_704_154 + ADDED[gate, options]


def test_dianet_of_a_preactivation_network_has_norms_of_its_own():
    with torch.device("meta"):
        model = create_model("preresnet164", "dianet")
    assert sum(p.numel() for p in model.parameters()) == 1_938_234


@pytest.mark.parametrize("name", ["resnet8", "preresnet11", "vgg11", "densenet10", "attention56"])
@pytest.mark.parametrize("gate", EACH_GATE)
def test_every_gate_trains_in_every_family(name, gate):
    model = create_model(name, gate, **OPTIONS.get(gate, {}))
    logits = model(torch.randn(2, 3, 32, 32))
    (logits.square().mean() + spem.auxiliary_loss(model)).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert model.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("gate", [gate for gate in spem.GATES if gate not in WITHOUT_IDENTITY])
@torch.no_grad()
def test_networks_leave_gates_at_the_identity_where_they_start(gate):
    options = OPTIONS.get(gate, {})
    if "init" in gate_options(gate):
        options = options | {"init": "identity"}
    model = create_model("resnet8", gate, **options)
    gates = [m for m in model.modules() if isinstance(m, spem.Attention)]
    assert gates
    for module in gates:
        x = torch.randn(2, module.channels, 6, 5)
        assert torch.equal(module(x), x)


def test_networks_leave_the_layers_that_a_gate_draws_itself():
    model = create_model("resnet164", "gc")
    mask = [m.mask.weight for m in model.modules() if isinstance(m, GC)][-1]
    assert mask.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.2)
    model = create_model("resnet164", "psa")
    query = [m.place_query.weight for m in model.modules() if isinstance(m, PSA)][-1]
    assert query.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["resnet8", "preresnet11", "vgg11", "densenet10", "attention56"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gates_work_wherever_they_are_placed(name, placement):
    model = create_model(name, "gct", placement=placement)
    gates = {n: p for n, p in model.named_parameters() if n.endswith("gamma")}
    for parameter in gates.values():
        torch.nn.init.normal_(parameter)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert gates
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in gates.values())


@pytest.mark.parametrize("variant", ["icme-b", "icme-c", "tmm-b", "tmm-c"])
@pytest.mark.parametrize("name", ["resnet11", "preresnet8", "densenet10"])
def test_gates_that_read_the_blocks_input_get_it(name, variant):
    model = create_model(name, "spa", variant=variant, reduction=4)
    before = model.eval()(torch.ones(1, 3, 32, 32))
    assert before.isfinite().all()
    with pytest.raises(ValueError, match="reads the block's input"):
        create_model(name, "spa", variant=variant, reduction=1, placement="conv")


def test_a_mask_gates_some_places():
    model = create_model("resnet20", "se", mask=[1, 0, 0, 0, 1, 0, 0, 0, 1])
    gated = [n for n, m in model.named_modules() if n.endswith("gate")]
    assert gated == ["layer1.0.bn2.gate", "layer2.1.bn2.gate", "layer3.2.bn2.gate"]
    with pytest.raises(ValueError, match="mask has 3 values, the network 9 places"):
        create_model("resnet20", "se", mask=[1, 0, 1])


def test_dianet_stores_one_unit_a_stage():
    model = create_model("resnet20", "dianet")
    keys = [key for key in model.state_dict() if "w_ih.0.weight" in key]
    assert keys == [f"layer{stage}.0.bn2.gate.w_ih.0.weight" for stage in (1, 2, 3)]
    x = torch.randn(2, 3, 16, 16)
    model.eval()
    twin = copy.deepcopy(model)
    assert torch.equal(model(x), model(x))
    assert torch.equal(twin(x), model(x))
    twin.layer1[0].bn2.gate.w_ih[2].bias.data.add_(1)
    assert not torch.equal(twin(x), model(x))


@pytest.mark.parametrize(
    ("name", "block"),
    [("resnet29", "bottleneck"), ("resnet83", "bottleneck"), ("resnet164", "bottleneck")]
    + [(f"resnet{depth}", "basic") for depth in (8, 20, 32, 56, 110, 116)],
)
def test_the_default_block(name, block):
    with torch.device("meta"):
        model = create_model(name)
    assert model.config.block == block


def test_a_block_can_be_chosen():
    assert create_model("resnet20", block="bottleneck").config.block == "bottleneck"


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
    assert all("gate." in key for key in missing)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain(x), gated(x))
    assert torch.equal(plain.eval()(x), gated.eval()(x))


def test_the_convolutions_start_he_out():
    weight = create_model("resnet164").layer3[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_a_resnet164_starts_with_27_squares():
    assert spem.auxiliary_loss(create_model("resnet164", "spem", alpha=1.0)) == 27


def test_deterministic_algorithms_suffice():
    torch.use_deterministic_algorithms(True)
    try:
        create_model("resnet8", "spem")(torch.randn(2, 3, 8, 8)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet"}, "unknown model 'resnet'; known: "),
        ({"name": "resnext20"}, "unknown model 'resnext20'"),
        ({"name": "vgg12"}, "unknown model 'vgg12'; known: vgg"),
        ({"name": "densenet99"}, "depth 99 of 'densenet99' is not 6n"),
        ({"name": "vgg11", "block": "basic"}, "'vgg11' has no choice of blocks"),
        ({"name": "resnet20", "gate": "se", "placement": "top"}, "unknown placement 'top'"),
        ({"name": "resnet20", "mask": [1]}, "mask given without a gate"),
        ({"name": "resnet21"}, "depth 21 is neither 6n"),
        ({"name": "resnet2"}, "depth 2 of 'resnet2' is not 6n"),
        ({"name": "resnet20", "block": "wide"}, "unknown block 'wide'"),
        ({"name": "resnet32", "block": "bottleneck"}, "depth 32 of 'resnet32' is not 9n"),
        ({"name": "resnet20", "gate": "spme"}, "unknown gate 'spme'; known: spem"),
        ({"name": "resnet20", "num_classes": 0}, "num_classes is 0"),
        ({"name": "resnet20", "in_channels": 0}, "in_channels is 0"),
        ({"name": "resnet20", "alpha": 0.1}, "alpha given without a gate"),
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
