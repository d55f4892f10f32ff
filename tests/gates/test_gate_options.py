"""Options that are refused, and gates that a user adds."""

from inspect import signature

import pytest
import torch
from torch import nn

from spem import attach, kernels
from spem.gates import GATES, SPEM, Gate, create_gate, gate_options, register
from spem.models import create_model
from spem.norm import GatedBatchNorm2d

CHANNELS = 16

BAD = [
    ("se", {"reduction": 0}, "reduction is 0, must be a whole number from 1 to"),
    ("sem", {"reduction": 2.5}, "reduction is 2.5, must be a whole number"),
    ("lsas", {"reduction": True}, "reduction is True, must be a whole number"),
    *(
        (name, {"reduction": 17, **more}, "reduction is 17, must be at most 16")
        for name, more in [
            *((name, {}) for name in ("cbam", "fcanet", "dianet", "hpda")),
            *(("spa", {"variant": variant}) for variant in ("icme-a", "tmm-a")),
        ]
    ),
    ("eca", {"kernel_size": 4}, "kernel_size is 4, must be an odd whole number"),
    ("sem", {"kernel_size": 0}, "kernel_size is 0, must be an odd whole number"),
    ("cbam", {"kernel_size": 2}, "kernel_size is 2, must be an odd whole number"),
    ("cbam", {"kernel_size": 3, "spatial": False}, "kernel_size is 3, but belongs to spatial=True"),
    ("cbam", {"pools": ("avg", "mean")}, "unknown pool of CBAM 'mean'; known: "),
    ("cbam", {"pools": ()}, "must name at least one pooling"),
    ("sge", {}, "groups is 64, must be a divisor of the 16 channels"),
    ("sge", {"groups": 3}, "groups is 3, must be a divisor"),
    ("sge", {"groups": 4, "eps": -1.0}, "eps is -1.0, must be"),
    ("srm", {"eps": float("nan")}, "eps is nan, must be"),
    ("gct", {"mode": "l3"}, "unknown mode 'l3'; known: "),
    ("gct", {"after_relu": True}, "after_relu belongs to mode='l1'"),
    ("fcanet", {"frequencies": "top5"}, "5 does not divide 16 channels"),
    ("fcanet", {"frequencies": "top33"}, "unknown frequencies 'top33'; known: "),
    ("fcanet", {"dct_size": 0}, "dct_size is 0, must be a whole number"),
    ("spa", {"variant": "icme"}, "unknown variant 'icme'; known: icme-"),
    ("spa", {"source_channels": 8}, "icme-a has no source"),
    ("spa", {"variant": "tmm-b", "source_channels": 0}, "source_channels is 0, must be"),
    ("lsas", {"order": -1}, "order is -1, must be a whole number from 0 to 100"),
    ("danet", {"attention": "spatial"}, "unknown attention 'spatial'; known: "),
    ("srp", {}, "gate 'srp' needs the option 'rho', which has no default"),
    ("srp", {"rho": 0}, r"rho is 0, must lie in \(0, 1\]"),
    ("se", {"pool": "srp"}, "rho is None with pool='srp'"),
    ("ie", {"regions": 2}, "belong to pool='srp'"),
    ("hpda", {"branches": 1}, "branches is 1, must be a whole number from 2 to 256"),
    ("hpda", {"margin": -1}, "margin is -1, must be"),
    ("asr", {"attention": "srm"}, "unknown attention of ASR 'srm'; known: "),
    ("asr", {"attention_options": {"reducton": 4}}, "option of gate 'se' 'reducton'; known: red"),
    ("asr", {"attention_options": {"init": "identity"}}, "attention_options has init='identity'"),
    ("dianet", {"leader": create_gate("dianet", 8)}, "the leader has 8 channels and reduction 4"),
    ("se", {"reducton": 8}, "unknown option of gate 'se' 'reducton'; known: reduction, "),
    ("se", {"channels": 3}, "unknown option of gate 'se' 'channels'; known: "),
    ("se", {"name": "eca"}, "unknown option of gate 'se' 'name'; known: "),
    ("se", {"bias": "no"}, "bias is 'no', must be True or False"),
    ("spem", {"excitation": "no"}, "excitation is 'no', must be True or False"),
    ("spem", {"alpha": "x"}, "alpha is 'x', must be a finite number of at least 0"),
    ("spem", {"pool": "fixed", "mix": "x"}, r"mix is 'x', must lie in \[0, 1\]"),
    ("spem", {"pool": ["a"]}, r"unknown pool \['a'\]; known: "),
    *((name, {"eps": "x"}, "eps is 'x', must be a finite number") for name in ("srm", "gct")),
    ("sge", {"groups": 4, "eps": "x"}, "eps is 'x', must be a finite number"),
    ("srp", {"rho": "x"}, r"rho is 'x', must lie in \(0, 1\]"),
    ("eca", {"kernel_size": True}, "kernel_size is True, must be an odd whole number"),
    ("fcanet", {"frequencies": 3}, "unknown frequencies 3; known: "),
    ("cbam", {"pools": 3}, "pools is 3, must be a list of names"),
    ("asr", {"attention_options": 3}, "attention_options is 3, must be a mapping"),
    ("asr", {"attention_options": {"bias": "no"}}, "bias is 'no', must be True or False"),
    ("dianet", {"leader": "x"}, "leader is 'x', must be a DIANet gate"),
]
NEEDED = {"srp": {"rho": 0.5}, "sge": {"groups": 4}}
EVERY_OPTION = [(name, option) for name in GATES for option in gate_options(name)]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_gate(name, CHANNELS, **options)


@pytest.mark.parametrize("call", [attach, create_model])
def test_no_option_has_the_name_of_an_argument_that_it_is_given_beside(call):
    taken = signature(call).parameters.keys() - {"init"}
    assert [option for _, option in EVERY_OPTION if option in taken] == []


@pytest.mark.parametrize(("name", "option"), EVERY_OPTION)
def test_every_option_refuses_values_of_other_types(name, option):
    wrong = [object(), {"a"}, float("nan")]
    # Numbers are no switches, and switches no numbers.
    wrong += [1, "no"] if isinstance(gate_options(name)[option], bool) else [True]
    for value in wrong:
        with pytest.raises(ValueError, match=option):
            create_gate(name, CHANNELS, **NEEDED.get(name, {}) | {option: value})


def test_a_class_refuses_what_create_gate_refuses():
    for options in ({"alpha": "x"}, {"pool": ["a"]}, {"pool": "fixed", "mix": "x"}, {"init": []}):
        with pytest.raises(ValueError, match=list(options)[-1]):
            SPEM(8, **options)


def test_names_that_are_no_text():
    with pytest.raises(ValueError, match=r"unknown gate \['se'\]; known: "):
        create_gate(["se"], 8)


@pytest.mark.parametrize("name", ["se", "srp", "sem", "lsas"])
def test_a_reduction_above_the_channels_leaves_one_hidden_unit(name):
    gate = create_gate(name, CHANNELS, reduction=100, **({"rho": 0.5} if name == "srp" else {}))
    assert gate.fc1.weight.shape == (1, CHANNELS)


def test_too_few_channels_for_the_position_module():
    with pytest.raises(ValueError, match="channels is 7, the position module needs at least 8"):
        create_gate("danet", 7)
    assert create_gate("danet", 7, attention="channel").channels == 7


def test_a_batch_of_one_that_cannot_be_normalised():
    with pytest.raises(
        ValueError, match="SRM normalises over the batch: training needs at least 2"
    ):
        create_gate("srm", CHANNELS)(torch.randn(1, CHANNELS, 4, 4))
    point = torch.randn(1, CHANNELS, 1, 1)
    for name in ("cbam", "hpda"):
        gate = create_gate(name, CHANNELS)
        with pytest.raises(ValueError, match=f"{type(gate).__name__} .* train with more images or"):
            gate(point)
        for norm in (m for m in gate.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eval()
        assert gate(point).shape == point.shape
    spa = create_gate("spa", CHANNELS, variant="tmm-c", source_channels=8)
    with pytest.raises(ValueError, match=r"SPA .* train with more images or larger feature maps"):
        spa(point, point[:, :8])
    assert create_gate("spa", CHANNELS, variant="tmm-a")(point).shape == point.shape
    assert create_gate("cbam", CHANNELS, spatial=False)(point).shape == point.shape


def test_spa_asks_for_its_source():
    x = torch.randn(4, CHANNELS, 5, 5)
    with pytest.raises(ValueError, match=r"tmm-b needs source: call gate\(x, source\)"):
        create_gate("spa", CHANNELS, variant="tmm-b")(x)
    with pytest.raises(ValueError, match="icme-a has no source"):
        create_gate("spa", CHANNELS)(x, x)
    with pytest.raises(ValueError, match=r"reads 16 channels, the source is \(4, 8, 5, 5\)"):
        create_gate("spa", CHANNELS, variant="icme-b")(x, torch.ones(4, 8, 5, 5))


@pytest.fixture
def peak():
    """A gate of a user's own."""

    @register("peak")
    class Peak(Gate):
        statistics = ("max", "min")

        def __init__(self, channels, *, init="paper"):
            super().__init__(channels, init)
            self.scale = nn.Parameter(torch.zeros(channels))
            if init == "identity":
                self.gain.fill_(2)

        def excite(self, pooled):
            return (self.scale * (pooled.max - pooled.min)).sigmoid()

    yield Peak
    del GATES["peak"]


@pytest.mark.parametrize("implementation", ["reference", "eager"])
def test_a_gate_of_ones_own(peak, implementation):
    gate, x = create_gate("peak", CHANNELS), torch.randn(4, CHANNELS, 5, 5)
    assert isinstance(gate, peak)
    nn.init.normal_(gate.scale)
    span = x.amax((2, 3)) - x.amin((2, 3))
    expected = x * (gate.scale * span).sigmoid()[..., None, None]
    norm, plain = GatedBatchNorm2d(CHANNELS, gate=gate), nn.BatchNorm2d(CHANNELS)
    with kernels.use(implementation):
        torch.testing.assert_close(gate(x), expected)
        torch.testing.assert_close(norm(x), gate(plain(x)))
    assert torch.equal(create_gate("peak", CHANNELS, init="identity")(x), x)
    with pytest.raises(ValueError, match="unknown option of gate 'peak' 'int'; known: init"):
        create_gate("peak", CHANNELS, int="identity")
    logits = create_model("resnet8", gate="peak")(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="the gate name 'se' is taken by SE"):
        register("se")
    with pytest.raises(ValueError, match="must be a class that derives from Gate or Attention"):
        register("linear")(nn.Linear)
    assert "linear" not in GATES


def test_an_excitation_of_another_shape_is_refused():
    class Odd(Gate):
        def excite(self, pooled):
            return pooled.mean[:, :1]

    with pytest.raises(ValueError, match=r"excite of Odd returned \(2, 1\), must be \(N, 8\)"):
        Odd(8)(torch.ones(2, 8, 3, 3))
