"""A plain checkpoint in a network with gates."""

import pytest
import torch

from spem import create_model, load_backbone


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
