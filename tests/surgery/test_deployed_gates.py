"""In inference every pooled gate computes the same multiplier in fewer steps."""

import copy
import pickle

import pytest
import torch
from parity import assert_parity
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import spem
from spem import create_model
from spem.gates import Gate, create_gate
from spem.gates.deployed import DeployedGate
from spem.surgery.deployment import deploy
from spem.surgery.fold import FoldedNorm, fold_gates

C = 12
POOLS = [
    {},
    {"pool": "max"},
    {"pool": "min"},
    {"pool": "fixed", "mix": 0.3},
    {"pool": "adaptive"},
    {"pool": "adaptive", "mixing": "sigmoid"},
]
SPEMS = [
    {**pool, **form, **switches}
    for pool in [{"pool": "avg"}, *POOLS]
    for form in ({}, {"form": "figure"})
    for switches in ({}, {"excitation": False}, {"reweighting": False})
]
CASES = [
    ("spem", {"excitation": False, "reweighting": False}),
    *(("spem", {**options, "init": init}) for options in SPEMS for init in ("paper", "identity")),
    *(
        (name, pool)
        for name in ("ie", "iebn", "se", "eca", "sem", "lsas", "dianet")
        for pool in POOLS
    ),
    *(("srm", options) for options in ({}, {"init": "identity"})),
    ("gct", {}),
    ("gct", {"mode": "l1"}),
    ("srp", {"rho": 0.5}),
]


def drawn(name, options, dtype=torch.float64):
    """A gate in evaluation whose every parameter and running statistic has left its start."""
    gate = create_gate(name, C, **options).to(dtype)
    for key, value in gate.state_dict().items():
        if value.is_floating_point() and key != "gain":
            value.add_(0.7 * torch.randn_like(value))
            if key.endswith("running_var"):
                value.abs_()
    return gate.eval()


def maps(dtype=torch.float64, size=5):
    return torch.randn(4, C, size, size, dtype=dtype) + torch.randn(4, C, 1, 1, dtype=dtype)


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = ("view", "select", "detach", "alias", "t.", "unsqueeze", "squeeze", "expand")
        name = func.__name__
        if not name.startswith(views):
            self.ops.append(name)
        return func(*args, **(kwargs or {}))


def count(gate, x):
    pooled = gate.pool_map(x)
    with torch.no_grad(), Count() as counted:
        gate.multiplier(pooled)
    return len(counted.ops)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_deployed_gate_multiplies_the_same(name, options):
    exact = drawn(name, options)
    naive = copy.deepcopy(exact).float()
    x, lean = maps(), copy.deepcopy(exact).deployed()
    torch.testing.assert_close(lean(x), exact(x), atol=1e-12, rtol=1e-12)
    short = copy.deepcopy(naive).deployed()
    assert {value.dtype for value in short.state_dict().values()} <= {torch.float32, torch.int64}
    truth = copy.deepcopy(naive).double()(x.float().double())
    assert_parity(short(x.float()), naive(x.float()), truth, "deployed")
    assert set(short.statistics) <= set(exact.statistics)
    # A gain that is not 1 stays; then a gate without any other constant gains nothing.
    fewer = count(lean, x) < count(exact, x)
    assert fewer or not (exact.gain == 1).all()


@pytest.mark.parametrize("form", ["code", "figure"])
def test_spem_keeps_five_vectors(form):
    gate = drawn("spem", {"form": form})
    before = count(gate, maps())
    lean = gate.deployed()
    assert [value.shape for key, value in lean.state_dict().items() if key != "gain"] == [(C,)] * 5
    assert not list(lean.parameters())
    assert (before, count(lean, maps())) == ({"code": 20, "figure": 18}[form], 7)


@pytest.mark.parametrize(
    ("name", "options", "statistics"),
    [
        ("ie", {"pool": "max"}, {"max"}),
        ("ie", {"pool": "min"}, {"min"}),
        ("se", {"pool": "max"}, {"max"}),
        ("spem", {"pool": "max", "reweighting": False}, {"max"}),
        ("spem", {"pool": "avg", "excitation": False}, {"max", "min"}),
        ("spem", {"pool": "avg"}, {"mean", "max", "min"}),
        ("spem", {}, {"max", "min"}),
        ("srm", {}, {"mean", "var"}),
    ],
)
def test_no_statistic_is_pooled_that_is_not_read(name, options, statistics):
    assert set(drawn(name, options).deployed().statistics) == statistics


@pytest.mark.parametrize("name", ["ie", "se"])
def test_behind_a_norm_that_stays_both_extrema_are_pooled(name):
    norm = spem.GatedBatchNorm2d(C, gate=drawn(name, {"pool": "max"})).double().eval()
    nn.init.normal_(norm.weight)
    x, lean = maps(), copy.deepcopy(norm)
    fold_gates(lean)
    assert set(lean.gate.statistics) == {"max", "min"}
    with spem.kernels.use("reference"):
        torch.testing.assert_close(lean(x), norm(x), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(lean(x), norm(x), atol=1e-12, rtol=1e-12)


def test_a_gate_in_two_places_stays_one():
    gate = drawn("spem", {})
    model = nn.Sequential(gate, nn.ReLU(), nn.Sequential(gate))
    expected = model(maps(torch.float64))
    fold_gates(model)
    assert isinstance(model[0], DeployedGate)
    assert model[0] is model[2][0]
    assert expected.shape == (4, C, 5, 5)


def test_a_class_of_ones_own_keeps_its_excitation():
    class Half(spem.gates.SPEM):
        def excite(self, pooled):
            return super().excite(pooled) / 2

    class Third(spem.gates.IE):
        def excite(self, pooled):
            return super().excite(pooled) / 3

    for kind in (Half, Third):
        gate, x = kind(C).eval(), maps(torch.float32)
        expected = gate(x)
        assert torch.equal(gate.deployed()(x), expected)


@pytest.mark.parametrize("name", ["spem", "ie", "srm"])
def test_the_deployed_gate_travels(name):
    lean, x = drawn(name, {}).deployed(), maps()
    expected = lean(x)
    for other in (copy.deepcopy(lean), pickle.loads(pickle.dumps(lean))):
        assert torch.equal(other(x), expected)
    half = copy.deepcopy(lean).bfloat16()
    assert {value.dtype for value in half.state_dict().values()} == {torch.float32}
    assert half(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lean(x), expected)
    exported = torch.export.export(lean, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    torch.testing.assert_close(exported.module()(x[:3]), expected[:3])
    torch.compiler.reset()
    compiled = torch.compile(lean, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("gate", ["spem", "srm", "ie", "se", "eca", "gct", "sem", "lsas", "iebn"])
@pytest.mark.parametrize("name", ["resnet11", "preresnet11"])
def test_whole_networks_are_deployed_within_the_tolerance_rule(name, gate):
    model = create_model(name, gate).double()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    for _ in range(2):
        model(torch.randn(4, 3, 16, 16, dtype=torch.float64))
    model = model.eval().float()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 3, 16, 16)
    deployed = deploy(model, fold_batchnorm=True)
    truth = copy.deepcopy(model).double()(x.double())
    assert_parity(deployed(x), model(x), truth)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kinds = {type(m).__name__ for m in deployed.modules() if isinstance(m, Gate)}
    leaner = {"spem": {"DeployedSPEM"}, "srm": {"DeployedSRM"}, "ie": {"DeployedGate"}}
    assert kinds == leaner.get(gate, {type(create_gate(gate, C)).__name__})
    if name == "resnet11" and gate != "iebn":
        assert sum(isinstance(m, FoldedNorm) for m in deployed.modules()) == 13
