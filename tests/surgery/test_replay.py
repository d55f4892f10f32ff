"""What was attached, as JSON, and put into another copy of the network."""

import copy
import json
import re
from importlib.metadata import version

import pytest
import torch
from foreign import Net, X
from gatings import EACH_GATE, OPTIONS, WITHOUT_IDENTITY, randomise
from torch import nn

import spem.surgery.attachment as attachment_module
from spem import attach, attachment, create_model, deploy, detach


def replayed(model, plain):
    """Return a plain copy with the gates of a model, by way of JSON and a state dict."""
    stored = json.loads(json.dumps(attachment(model)))
    attach(plain, **stored)
    plain.load_state_dict(model.state_dict())
    assert attachment(plain) == stored
    return plain.train(model.training)


@pytest.mark.parametrize("gate", EACH_GATE)
@pytest.mark.parametrize("at", ["residual", "stage", ["stem", "layer2.*.bn1"]])
@pytest.mark.parametrize("init", ["identity", "paper"])
def test_the_same_gates_come_back(gate, at, init):
    model = Net().eval()
    if init == "identity" and gate in WITHOUT_IDENTITY:
        with pytest.raises(ValueError, match=r"no start at the identity.*give init='paper'"):
            attach(model, gate, at=at, **OPTIONS[gate] | {"init": init})
        assert repr(model) == repr(Net())
        return
    attach(model, gate, at=at, **OPTIONS.get(gate, {}) | {"init": init})
    twin = replayed(randomise(model), Net())
    assert torch.equal(twin(X), model(X))
    assert repr(twin) == repr(model)
    detach(twin)
    assert twin.state_dict().keys() == Net().state_dict().keys()
    with pytest.raises(ValueError, match=r"call spem\.attach first"):
        attachment(twin)


def test_it_says_what_stands_where():
    model = Net()
    attach(model, "se", at="stage", reduction=4, mask=[0, 1])
    assert attachment(model) == {
        "gate": "se",
        "at": ["layer2"],
        "init": "identity",
        "channels": {"layer2": 16},
        "reduction": 4,
        "version": version("spem"),
    }


def test_several_attachments_come_back_in_one_call():
    model = Net().eval()
    attach(model, "spem", at="stage")
    attach(model, "se", reduction=4, init="paper")
    attach(model, "eca", at=lambda name, _: name == "stem")
    stored = attachment(model)
    assert [call["gate"] for call in stored["then"]] == ["se", "eca"]
    plain = Net()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    assert len(attach(plain, **stored, optimizer=optimizer)) == 2 + 4 + 1
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in plain.parameters()}
    plain.load_state_dict(randomise(model).state_dict())
    assert torch.equal(plain.eval()(X), model(X))


def test_copies_carry_it_and_parts_are_named_by_the_whole():
    whole = nn.ModuleDict({"body": Net()})
    attach(whole["body"], "se", at="stage", reduction=4)
    stored = attachment(copy.deepcopy(whole))
    assert stored["at"] == ["body.layer1", "body.layer2"]
    fresh = nn.ModuleDict({"body": Net()})
    attach(fresh, **stored)
    fresh.load_state_dict(whole.state_dict())


def test_a_shared_unit_is_shared_again():
    model = Net().eval()
    attach(model, "dianet", mask=[0, 1, 1, 1])
    twin = replayed(randomise(model), Net())
    assert torch.equal(twin(X), model(X))


def test_names_with_signs_of_patterns_are_names():
    model = nn.ModuleDict({"a[0]": nn.BatchNorm2d(8), "a0": nn.BatchNorm2d(8)})
    attach(model, "se", at="a[[]0]", reduction=4)
    twin = nn.ModuleDict({"a[0]": nn.BatchNorm2d(8), "a0": nn.BatchNorm2d(8)})
    assert [entry.name for entry in attach(twin, **attachment(model))] == ["a[0]"]


@pytest.mark.parametrize("model", [Net(), create_model("resnet8", "se", reduction=4)])
def test_what_attach_did_not_put_in_is_not_told(model):
    with pytest.raises(ValueError, match="no gates that attach has put in"):
        attachment(model)
    with pytest.raises(ValueError, match="no gates that attach has put in"):
        attachment(deploy(model))


def test_a_lost_gate_is_not_told():
    model = Net()
    attach(model, "se")
    model.layer1[0].bn2 = nn.BatchNorm2d(8)
    with pytest.raises(RuntimeError, match="is lost"):
        attachment(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "spme"}, "unknown gate 'spme'"),
        ({"at": ["layer9"]}, "no module of the model is named 'layer9'"),
        ({"future": 1, "version": "9.0"}, "'future'.*(the attachment is of spem 9.0, this is spem"),
        ({"then": 3}, "then is 3, must be a list of what attachment returns"),
        ({"then": [{"gate": "se"}]}, "must be a list of what attachment returns"),
        ({"then": [{"gate": "se", "at": "stage"}]}, "'layer1' would get two gates"),
    ],
)
def test_a_wrong_attachment_is_named_and_nothing_is_changed(changes, message):
    model = Net()
    attach(model, "se", at="stage", reduction=4)
    plain = Net()
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        attach(plain, **{**attachment(model), **changes})
    assert plain.state_dict().keys() == Net().state_dict().keys()


def test_a_fabric_checkpoint_holds_what_its_network_needs(tmp_path):
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu")
    model = Net()
    attach(model, "spem")
    fabric.save(tmp_path / "a.ckpt", {"model": randomise(model), "attachment": attachment(model)})
    stored = fabric.load(tmp_path / "a.ckpt")
    fresh = Net()
    attach(fresh, **stored["attachment"])
    fresh.load_state_dict(stored["model"])
    assert torch.equal(fresh.eval()(X), model.eval()(X))


def test_a_model_that_an_earlier_version_pickled_goes_on():
    model = Net().eval()
    attach(model, "se", at="stage", reduction=4)
    expected = model(X)
    del vars(model)["_attached_gates"]["calls"]
    for name in ("layer1.1", "layer2.1"):
        del vars(model.get_submodule(name))["_gated_as"]
    for hook in (attachment_module.apply_gate, attachment_module.check_gates):
        assert hook.__name__ in vars(attachment_module)  # where its pickles look for the hooks
    assert torch.equal(model(X), expected)
    attach(model, "eca")
    with pytest.raises(ValueError, match="an earlier version attached are not described"):
        attachment(model)
    detach(model)
    assert model.state_dict().keys() == Net().state_dict().keys()
