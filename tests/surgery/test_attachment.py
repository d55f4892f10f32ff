"""attach and detach on models that know nothing of gates."""

import copy

import pytest
import torch
from foreign import Net, NormAct, X
from gatings import OPTIONS, WITHOUT_IDENTITY
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import spem
from spem import attach, create_model, deploy, detach
from spem.norm import GatedBatchNorm2d


@pytest.mark.parametrize("gate", [g for g in sorted(spem.GATES) if g not in WITHOUT_IDENTITY])
@pytest.mark.parametrize("at", ["residual", "stage", "stem*", "layer*.*.bn1"])
def test_identity_changes_no_logit_and_no_key(gate, at):
    plain, model = Net(), Net()
    model.load_state_dict(plain.state_dict())
    report = attach(model, gate, at=at, **OPTIONS.get(gate, {}))
    keys, before = model.state_dict().keys(), plain.state_dict().keys()
    assert before < keys
    assert all(".gate." in key for key in keys - before)
    # The last norm of `layer*.*.bn1` and the residual end only; hooks and folds alike.
    assert torch.equal(model(X), plain(X))
    assert torch.equal(model.eval()(X), plain.eval()(X))
    assert len(report) == {"residual": 4, "stage": 2, "stem*": 2, "layer*.*.bn1": 4}[at]


def test_the_same_objects_stay():
    model = Net()
    weight, slot = model.layer1[0].bn2.weight, model.layer1[0].bn2
    called = []
    slot.register_forward_hook(lambda *_: called.append(1))
    report = attach(model, "spem")
    assert model.layer1[0].bn2 is slot
    assert slot.weight is weight
    assert type(slot) is GatedBatchNorm2d
    model(X)
    assert called == [1]
    assert str(report).splitlines()[1].split() == ["layer1.0.bn2", "8", "34", "norm"]
    assert str(report).splitlines()[-1] == "4 gates, 200 parameters"


@pytest.mark.parametrize("at", ["residual", "stage", "stem"])
def test_detach_gives_the_model_back(at):
    model = Net()
    before = copy.deepcopy(model)
    attach(model, "se", at=at)
    detach(model)
    assert repr(model) == repr(before)
    assert list(model.state_dict()) == list(before.state_dict())
    for ours, theirs in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(model.modules(), before.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert vars(ours).keys() == vars(theirs).keys()
        assert not ours._forward_hooks
        assert not ours._forward_pre_hooks
    assert torch.equal(model(X), before(X))


def test_detach_keeps_the_weights_of_now():
    model = Net()
    attach(model, "spem")
    model.layer1[0].bn2.weight.data.fill_(3)
    detach(model)
    assert (model.layer1[0].bn2.weight == 3).all()


def test_our_own_networks_attach_and_detach():
    for name in ("resnet8", "preresnet8", "vgg11", "densenet10", "attention56"):
        plain = create_model(name).eval()
        model = copy.deepcopy(plain)
        if name == "attention56":
            report = attach(model, "se", at="layers.*.last.*.conv3")
        else:
            report = attach(model, "se")
        assert report
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(model(x), plain(x))
        detach(model)
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    ("name", "gate", "options"),
    [
        ("resnet8", "iebn", {}),
        ("preresnet8", "spem", {}),
        ("densenet10", "se", {}),
        ("vgg11", "gct", {"placement": "conv"}),
    ],
)
def test_detach_empties_our_own_gated_networks(name, gate, options):
    model, plain = create_model(name, gate, **options), create_model(name)
    detach(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.config == plain.config


def test_the_config_is_put_aside_while_gates_are_attached():
    model = create_model("resnet8")
    config = model.config
    attach(model, "se")
    assert not hasattr(model, "config")
    attach(model, "spem", at="stage")
    detach(model)
    assert model.config == config


def test_the_config_that_comes_back_names_no_gate():
    model = create_model("resnet8", "spem")
    attach(model, "se", at="stage")
    assert not hasattr(deploy(model), "config")
    detach(model)
    assert model.config == create_model("resnet8").config


def test_a_config_of_another_kind_stays():
    model = Net()
    vars(model)["config"] = config = object()
    attach(model, "se")
    assert model.config is config
    detach(model)
    assert model.config is config


def test_a_part_can_be_detached_by_the_whole():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Net()

        def forward(self, x):
            return self.body(x)

    model = Whole()
    attach(model.body, "se")
    detach(model)
    model(X)
    attach(model, "se")
    detach(model.body.layer1)
    with pytest.raises(RuntimeError, match="detached it alone"):
        model(X)


def test_a_shared_module_is_gated_once():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    model.append(model[1])
    assert len(attach(model, "spem", at="1")) == 1
    assert model[2] is model[1]
    assert type(model[2]) is GatedBatchNorm2d


def test_device_mode_and_dtype_are_kept():
    model = Net().double().eval()
    attach(model, "se")
    assert not model.layer1[0].bn2.gate.training
    assert model.layer1[0].bn2.gate.fc1.weight.dtype == torch.float64
    half = Net().bfloat16().eval()
    plain = copy.deepcopy(half)
    attach(half, "se")
    assert half.layer1[0].bn2.gate.fc1.weight.dtype == torch.float32
    assert torch.equal(half(X.bfloat16()), plain(X.bfloat16()))


def test_a_dry_run_changes_nothing():
    model = Net()
    report = attach(model, "spem", dry_run=True)
    assert len(report) == 4
    assert model.state_dict().keys() == Net().state_dict().keys()
    assert not model._forward_pre_hooks


def test_names_lists_predicates_and_masks():
    assert len(attach(Net(), "se", at=["layer1.0.bn1", "layer2.*.bn1"])) == 3
    assert len(attach(Net(), "se", at=lambda n, m: isinstance(m, NormAct))) == 1
    report = attach(Net(), "se", mask=[0, 1, 0, 1])
    assert [entry.name for entry in report] == ["layer1.1.bn2", "layer2.1.bn2"]


def test_dianet_shares_a_unit_among_slots_of_a_width():
    model = Net()
    attach(model, "dianet")
    assert [n for n in model.state_dict() if n.endswith("w_ih.0.bias")] == [
        "layer1.0.bn2.gate.w_ih.0.bias",
        "layer2.0.bn2.gate.w_ih.0.bias",
    ]


def test_a_lost_gate_is_noticed():
    model = Net()
    attach(model, "spem")
    model.layer1[0].bn2 = nn.BatchNorm2d(8)
    with pytest.raises(RuntimeError, match=r"the gate of 'layer1.0.bn2' is lost"):
        model(X)
    hooked = Net()
    attach(hooked, "spem", at="stem")
    hooked.stem[1] = nn.BatchNorm2d(8)
    with pytest.raises(RuntimeError, match="the gate of 'stem' is lost"):
        hooked(X)


def test_sync_batchnorm_conversion_is_refused():
    model = Net()
    attach(model, "spem")
    for gated in (model, create_model("resnet8", "spem")):
        with pytest.raises(RuntimeError, match="would drop its gate"):
            nn.SyncBatchNorm.convert_sync_batchnorm(gated)
    hooked = Net()
    attach(hooked, "spem", at="stem")
    with pytest.raises(RuntimeError, match=r"would drop its gate: .* attach gates after"):
        nn.SyncBatchNorm.convert_sync_batchnorm(hooked)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(Net()).eval()
    plain = copy.deepcopy(converted)
    assert attach(converted, "spem")[0].path == "hook"
    assert torch.equal(converted(X), plain(X))


def test_an_attached_model_compiles_whole():
    model = Net().eval()
    attach(model, "se")
    attach(model, "spem", at="stage")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (Net, {"gate": "spme"}, "unknown gate 'spme'; known: spem"),
        (Net, {"gate": "se", "reduktion": 4}, "'reduktion'; known: reduction"),
        (Net, {"gate": "se", "at": "layer9.*"}, r"no module of the model is named 'layer9.\*'"),
        (Net, {"gate": "se", "at": lambda n, m: False}, "matches no module of this Net"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {"gate": "se"}, "'residual' matches .*a pattern"),
        (Net, {"gate": "se", "at": "fc"}, "'fc' does not tell its channels"),
        (Net, {"gate": "se", "mask": "0000"}, "mask is '0000', must be a list of 0 and 1"),
        (Net, {"gate": "se", "mask": [1]}, "mask has 1 values, must have 4"),
        (Net, {"gate": "spa", "variant": "icme-b", "reduction": 4}, "reads the block's input"),
        (lambda: torch.compile(Net()), {"gate": "se"}, "compiled: attach gates first"),
        (lambda: nn.DataParallel(Net()), {"gate": "se"}, "wrapped in DataParallel"),
        (
            Net,
            {"gate": "se", "optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 1)},
            "the optimizer holds no parameter",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_changed(prepare, arguments, message):
    model = prepare()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(model, **arguments)
    assert list(model.state_dict()) == before


def test_twice_is_refused_and_detach_needs_gates():
    model = Net()
    with pytest.raises(ValueError, match="no gates to detach"):
        detach(model)
    attach(model, "se")
    with pytest.raises(ValueError, match=r"'layer1.0.bn2' has a gate already"):
        attach(model, "spem")


def test_a_model_of_sharded_parameters_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(Net())
    finally:
        dist.destroy_process_group()
    with pytest.raises(ValueError, match="wrapped in FSDPModule: attach gates first"):
        attach(model, "se")
