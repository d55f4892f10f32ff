"""A gate of the user's own gets from networks, surgery and search what the library's gates get."""

import pytest
import torch
from torch import nn

import spem
from spem import attach, create_model, deploy
from spem.explain import gate_report
from spem.gates import Attention, Gate, create_gate_at
from spem.train.supernet import Supernet

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def own():
    """Registers classes for one test: own(name=class)."""
    before = dict(spem.GATES)
    yield lambda **classes: spem.GATES.update(classes)
    spem.GATES.clear()
    spem.GATES.update(before)


class Placed(Attention):
    """Adds what it is told of its place."""

    needs_source = True

    def __init__(self, channels, *, size=None, width=None, init="paper"):
        super().__init__(channels, init)
        self.size, self.width = size, width

    @classmethod
    def options_at(cls, place, options):
        return {"size": place.map_size, "width": place.source_channels, **options}

    def forward(self, x, source):
        assert source.shape[1] == self.width
        return x


class Counted(Gate):
    """The gates of a stage count their calls in the first one's `calls`."""

    shares_unit = True
    statistics = ()

    def __init__(self, channels, *, leader=None, init="paper"):
        super().__init__(channels, init)
        self.leader = () if leader is None else (leader,)
        self.calls = 0
        if leader is None:
            self.weight = nn.Parameter(torch.ones(channels))

    @classmethod
    def options_at(cls, place, options):
        return {**options, "leader": place.leader}

    def excite(self, pooled):
        unit = self.leader[0] if self.leader else self
        unit.calls += 1
        return unit.weight[None] * unit.calls

    def reset(self):
        self.calls = 0


class Constant(Gate):
    """One learned number a channel, and an SE behind where `more` says so."""

    statistics = ()

    def __init__(self, channels, *, more=False, init="paper"):
        super().__init__(channels, init)
        self.factor = nn.Parameter(torch.randn(channels))
        self.more = spem.create_gate("se", channels) if more else None
        self.rest_options = ("se", {}) if more else None
        self.statistics = self.more.statistics if self.more else ()

    def excite(self, pooled):
        if self.more is None:
            return self.factor[None]
        return self.factor * self.more.multiplier(pooled.affine(self.factor, 0 * self.factor))

    def constant_part(self):
        return self.gain * self.factor, self.more


def test_a_gate_learns_its_place(own):
    own(placed=Placed)
    model = create_model("resnet8", "placed")
    model(X)
    gates = [module for module in model.modules() if isinstance(module, Placed)]
    assert [(gate.size, gate.width) for gate in gates] == [(32, 16), (16, 16), (8, 32)]
    assert create_model("resnet8", "placed", size=3).layer1[0].bn2.gate.size == 3
    for placement in ("conv", "norm"):
        with pytest.raises(ValueError, match=r"'placed' with \{\} reads the block's input"):
            create_model("resnet8", "placed", placement=placement)
    with pytest.raises(ValueError, match="reads the block's input"):
        attach(create_model("resnet8"), "placed")
    with pytest.raises(ValueError, match="reads the block's input"):
        Supernet(create_model("resnet8"), "placed")


def test_the_gates_of_a_stage_share_a_unit(own):
    own(counted=Counted)
    model, attached = create_model("resnet14", "counted"), create_model("resnet14")
    attach(attached, "counted")
    for network in (model, attached):
        assert [n for n in network.state_dict() if n.endswith("gate.weight")] == [
            f"layer{stage}.0.bn2.gate.weight" for stage in (1, 2, 3)
        ]
        network(X)
        assert network.layer1[0].bn2.gate.calls == 2
    report = gate_report(model, [(X, None)])
    assert all(statistics.spread == 0 for statistics in report.values())
    left = deploy(model, constant_gates=1.0, report=report)
    assert sum(isinstance(module, Counted) for module in left.modules()) == 6


def test_a_supernet_resets_the_unit_of_a_stage(own):
    own(counted=Counted)
    supernet = Supernet(create_model("resnet14"), "counted").eval()
    supernet.mask = [1, 1, 1, 0, 0, 0]
    first = supernet(X)
    assert [unit.calls for unit in supernet.units.values()] == [0, 0, 0]
    assert torch.equal(supernet(X), first)


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("name", ["resnet8", "preresnet8"])
def test_a_constant_part_disappears_in_deployment(own, name, more):
    own(constant=Constant)
    model = create_model(name, "constant", more=more).double().eval()
    deployed = deploy(model)
    torch.testing.assert_close(deployed(X.double()), model(X.double()), atol=1e-10, rtol=0)
    plain = create_model(name, "se", placement="residual") if more else create_model(name)
    assert deployed.state_dict().keys() == plain.state_dict().keys()
    assert deployed.config == plain.config


def test_create_gate_at_refuses_as_create_gate_does():
    with pytest.raises(ValueError, match="unknown gate 'spme'; known: spem"):
        create_gate_at("spme", 8, spem.gates.Place(), {})
