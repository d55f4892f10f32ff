"""A plain checkpoint in a network with gates."""

import pytest
import torch
from foreign import Net, X
from torch.optim.swa_utils import AveragedModel

from spem import attach, create_model, load_backbone


def named(prefix):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


# What wrappers, training loops and old versions of PyTorch make of a state dict.
FORMS = {
    "DataParallel": named("module."),
    "compiled": named("_orig_mod."),
    "both": named("module._orig_mod."),
    "the other way round": named("_orig_mod.module."),
    "Lightning": named("model."),
    "another name": named("student.backbone."),
    "a compiled part": lambda state: {
        key.replace("layer1.0.", "layer1.0._orig_mod."): value for key, value in state.items()
    },
    "an average": lambda state: named("module.")(state) | {"n_averaged": torch.tensor(3)},
    "an average of two": lambda state: (
        named("module.module.")(state) | {"module.n_averaged": torch.tensor(3)}
    ),
    "PyTorch 0.4": lambda state: {
        key: value for key, value in state.items() if not key.endswith("num_batches_tracked")
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_load_as_they_exist(form):
    plain, model = Net().eval(), Net().eval()
    attach(model, "se")
    for value in plain.state_dict().values():
        value.copy_(torch.tensor(7) if value.dtype == torch.int64 else value + 0.1)
    load_backbone(model, FORMS[form](plain.state_dict()))
    assert torch.equal(model(X), plain(X))
    expected = 0 if form == "PyTorch 0.4" else 7
    assert model.layer2[0].bn2.num_batches_tracked == expected


def test_a_checkpoint_loads_into_wrapped_networks():
    plain, model = Net().eval(), Net().eval()
    attach(model, "se")
    load_backbone(torch.compile(model), AveragedModel(plain).state_dict())
    assert torch.equal(model(X), plain(X))
    with pytest.raises(ValueError, match=r"model begin with 'module.', .* inside the wrapper"):
        load_backbone(torch.nn.DataParallel(model), plain.state_dict())
    load_backbone(torch.nn.DataParallel(model), named("module.")(plain.state_dict()))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            lambda s: named("student.")(s) | named("teacher.")(s),
            "more than once: .* begin with 'student.' or 'teacher.'",
        ),
        (lambda s: named("model.")(s) | {"loss.w": torch.ones(1)}, r"1 unexpected \(loss.w\)"),
        (lambda s: {"state_dict": s, "state_dict_ema": s}, r"\['state_dict'\] or checkpoint\['s"),
        (lambda s: {"model": s, "epoch": 3, "optimizer": {}}, r"part checkpoint\['model'\]$"),
        (lambda s: {"ema": Net()}, r"give its part checkpoint\['ema'\].state_dict\(\)"),
    ],
)
def test_checkpoints_of_more_than_a_network_name_the_way_out(form, message):
    model = Net()
    attach(model, "se")
    with pytest.raises(ValueError, match=message):
        load_backbone(model, form(Net().state_dict()))


def test_keys_beside_the_network_can_be_ignored():
    model, state = Net(), Net().state_dict()
    attach(model, "se")
    loaded = load_backbone(model, named("model.")(state) | {"loss.w": X[0]}, ignore=["loss.*"])
    assert loaded.ignored == ["loss.w"]
    assert sorted(loaded.loaded) == sorted(state)


def test_a_plain_checkpoint_loads_whole():
    plain, model = create_model("resnet8"), create_model("resnet8", "spem", init="identity")
    state = {f"module.{k}": v for k, v in plain.state_dict().items()}
    loaded = load_backbone(model, state)
    assert sorted(loaded.loaded) == sorted(plain.state_dict())
    assert all(".gate." in key for key in loaded.new)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), plain(x))
    assert str(loaded) == f"{len(loaded.loaded)} loaded, {len(loaded.new)} new, 0 ignored"


def test_a_checkpoint_that_would_lose_weights_is_refused():
    model = create_model("resnet8", "spem", num_classes=7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = create_model("resnet8").state_dict()
    with pytest.raises(ValueError, match=r"2 mismatched \(fc.bias \(10,\) for \(7,\)"):
        load_backbone(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert load_backbone(model, state, ignore=["fc.*"]).ignored == ["fc.bias", "fc.weight"]
    with pytest.raises(ValueError, match="1 unexpected"):
        load_backbone(model, {**state, "extra": torch.ones(1)}, ignore=["fc.*"])
    del state["bn1.weight"]
    with pytest.raises(ValueError, match=r"1 missing \(bn1.weight"):
        load_backbone(model, state, ignore=["fc.*"])
    with pytest.raises(ValueError, match=r"state_dict is 'plain.pth': load the file first"):
        load_backbone(model, "plain.pth")
    with pytest.raises(ValueError, match=r"give its part checkpoint\['state_dict'\]"):
        load_backbone(model, {"state_dict": state})
