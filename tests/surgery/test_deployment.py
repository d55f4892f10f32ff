"""deploy is exact for ASR, and folds what a report calls constant."""

import copy

import pytest
import torch
from parity import assert_parity
from torch import nn

import spem
from spem import create_model
from spem.explain import gate_report
from spem.gates import record_gates
from spem.surgery.deployment import deploy
from spem.surgery.fold import FoldedNorm


def trained(name="resnet8", gate="asr", **options):
    """A network whose every parameter and buffer has left its start."""
    model = create_model(name, gate, **options).double()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    return model


X = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("attention", ["se", "eca", "ie", "sem", "lsas", "spem"])
@pytest.mark.parametrize("both", [False, True])
def test_asr_disappears_exactly(attention, both):
    model = trained(attention=attention, both=both)
    training, before = model.training, copy.deepcopy(model.state_dict())
    deployed = deploy(model)
    assert model.training == training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not deployed.training
    torch.testing.assert_close(deployed(X), model.eval()(X), atol=1e-10, rtol=0)
    twin = (
        create_model("resnet8", attention, placement="residual")
        if both
        else create_model("resnet8")
    )
    assert sum(p.numel() for p in deployed.parameters()) == sum(
        p.numel() for p in twin.parameters()
    )


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        *((name, "residual") for name in ("preresnet8", "preresnet11", "densenet10", "vgg11")),
        *((name, "conv") for name in ("resnet8", "preresnet11", "densenet10", "vgg11")),
    ],
)
def test_asr_disappears_where_no_norm_precedes_it(name, placement):
    size = 32 if name == "vgg11" else 8
    model = create_model(name, "asr", placement=placement).double()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    deployed = deploy(model)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), model.eval()(x), atol=1e-10, rtol=0)
    plain = create_model(name)
    assert deployed.state_dict().keys() == plain.state_dict().keys()
    assert deployed.config == plain.config


@pytest.mark.parametrize("gate", ["asr", "spem"])
@pytest.mark.parametrize("at", ["residual", "layer*.*.conv2"])
def test_attached_models_deploy(gate, at):
    model = create_model("resnet8").double()
    spem.attach(model, gate, at=at)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    expected = model.eval()(X)
    torch.testing.assert_close(deploy(model)(X), expected, atol=1e-10, rtol=0)
    report = gate_report(model, batches()) if gate == "spem" else None
    if report:
        deploy(model, constant_gates=1e9, report=report)(X)
    folded = deploy(model, fold_batchnorm=True, example=X)
    torch.testing.assert_close(folded(X), expected, atol=1e-10, rtol=1e-10)


def test_dianet_is_never_called_constant():
    model = trained(gate="dianet")
    report = gate_report(model, batches())
    deployed = deploy(model, constant_gates=1e9, report=report)
    assert deployed.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(deployed(X), deployed(X))


def test_the_deployed_network_can_be_built_from_its_config():
    for both in (False, True):
        deployed = deploy(trained(both=both, attention_options={"reduction": 4}))
        twin = create_model(**deployed.config.arguments())
        twin.double().eval().load_state_dict(deployed.state_dict())
        assert torch.equal(twin(X), deployed(X))


def batches():
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        yield torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=generator), None


@pytest.mark.parametrize("gate", ["spem", "iebn", "dianet"])
def test_the_report_is_that_of_all_multipliers(gate):
    model = trained(gate=gate)
    report = gate_report(model, batches())
    with torch.no_grad(), record_gates(model) as gates:
        for images, _ in batches():
            model(images)
    for name, statistics in report.items():
        values = torch.cat(gates[name])
        assert statistics.images == 12
        torch.testing.assert_close(statistics.mean, values.mean(0), atol=1e-12, rtol=0)
        torch.testing.assert_close(statistics.std, values.std(0, correction=0), atol=1e-7, rtol=0)


def test_gates_below_the_threshold_are_folded():
    model = trained(gate="spem")
    report = gate_report(model, batches())
    spreads = sorted(s.spread for s in report.values())
    threshold = spreads[1]
    deployed = deploy(model, constant_gates=threshold, report=report)
    left = [m for m in deployed.modules() if isinstance(m, spem.Gate)]
    assert len(left) == len(report) - 2
    twin = create_model("resnet8", "spem", mask=deployed.config.mask).double().eval()
    twin.load_state_dict(deployed.state_dict())
    assert torch.equal(twin(X), deployed(X))
    assert torch.equal(deploy(model, constant_gates=-0.0, report=report)(X), model.eval()(X))


@pytest.mark.parametrize("gate", ["spem", "se", "iebn"])
def test_a_gate_that_is_constant_folds_without_a_change(gate):
    model = create_model("resnet8", gate).double()
    for module in model.modules():
        if isinstance(module, spem.gates.SE):
            nn.init.zeros_(module.fc2.weight)
    model(X)
    model.eval()
    report = gate_report(model, batches())
    deployed = deploy(model, constant_gates=1e-12, report=report)
    assert not [m for m in deployed.modules() if isinstance(m, spem.Gate)]
    torch.testing.assert_close(deployed(X), model(X), atol=1e-10, rtol=0)


FOLDED = {
    "resnet11": (13, 0),
    # The stem and the shortcuts feed more than one reader; every block keeps its first norm.
    "preresnet11": (6, 4),
    "vgg11": (8, 0),
    "densenet10": (3, 6),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("gate", [None, "spem", "se", "cbam", "dianet", "iebn"])
def test_batch_norms_fold_into_their_convolutions(name, gate):
    options = {"reduction": 4} if gate == "cbam" else {}
    model = create_model(name, gate, **options).double()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32, dtype=torch.float64))
    before = copy.deepcopy(model.state_dict())
    deployed = deploy(model, fold_batchnorm=True)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), model.eval()(x), atol=1e-10, rtol=1e-10)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    left = sum(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    gates = sum(isinstance(m, spem.Attention) for m in deployed.modules())
    assert gates == sum(isinstance(m, spem.Attention) for m in model.modules())
    if gate in (None, "spem", "se"):
        folded = sum(isinstance(m, FoldedNorm) for m in deployed.modules())
        assert (folded, left) == FOLDED[name]


def test_a_norm_beside_another_reader_is_left():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.bn = spem.GatedBatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) + x

    model = Two().eval()
    with pytest.raises(ValueError, match="needs an example"):
        deploy(model, fold_batchnorm=True)
    deployed = deploy(model, fold_batchnorm=True, example=torch.randn(1, 3, 4, 4))
    assert isinstance(deployed.bn, spem.GatedBatchNorm2d)


def test_folding_keeps_float32_within_the_tolerance_rule():
    model = trained(gate="spem")
    exact = model.eval()(X)
    model = model.float()
    deployed = deploy(model, fold_batchnorm=True)
    assert_parity(deployed(X.float()), model(X.float()), exact)


def test_bad_input_is_named():
    model = create_model("resnet8", "spem")
    with pytest.raises(ValueError, match="belong together"):
        deploy(model, constant_gates=0.1)
    with pytest.raises(ValueError, match="constant_gates is -1"):
        deploy(model, constant_gates=-1, report={})
    other = gate_report(create_model("resnet14", "spem"), [(torch.randn(2, 3, 8, 8), None)])
    with pytest.raises(ValueError, match="report is of another model"):
        deploy(model, constant_gates=0.1, report=other)
    with pytest.raises(ValueError, match="no gates whose"):
        gate_report(create_model("resnet8"), [])
    with pytest.raises(ValueError, match="no images"):
        gate_report(model, [])
    model = create_model("resnet8", "asr")
    model.layer1[0].bn2.affine = False
    with pytest.raises(ValueError, match=r"'layer1.0.bn2' has no scale"):
        deploy(model)
