"""attach, detach and load_backbone on the networks of other libraries, with random weights."""

import copy

import pytest
import torch
from torch import nn

from spem import attach, create_gate, detach, load_backbone
from spem.norm import GatedBatchNorm2d

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def transformers_resnet(kind):
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type=kind, num_labels=5
        )
    )


def unet():
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet34", encoder_weights=None)


def yolo(name):
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(name, verbose=False)


# name: (builder, at, number of slots)
NETWORKS = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=5), "residual", 8),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(num_classes=5), "residual", 16),
    "torchvision resnext50": (
        lambda: torchvision.models.resnext50_32x4d(num_classes=5),
        "residual",
        16,
    ),
    "torchvision wide_resnet50": (
        lambda: torchvision.models.wide_resnet50_2(num_classes=5),
        "residual",
        16,
    ),
    "torchvision regnet": (
        lambda: torchvision.models.regnet_y_400mf(num_classes=5),
        "residual",
        16,
    ),
    "torchvision regnet stages": (
        lambda: torchvision.models.regnet_x_400mf(num_classes=5),
        "stage",
        4,
    ),
    "timm resnet50": (lambda: timm.create_model("resnet50", num_classes=5), "residual", 16),
    "timm seresnet50": (lambda: timm.create_model("seresnet50", num_classes=5), "residual", 16),
    "timm ecaresnet": (lambda: timm.create_model("ecaresnet50t", num_classes=5), "residual", 16),
    "timm resnetv2": (lambda: timm.create_model("resnetv2_50", num_classes=5), "residual", 16),
    "timm regnet": (lambda: timm.create_model("regnety_004", num_classes=5), "residual", 16),
    "timm convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), "stage", 4),
    "transformers basic": (lambda: transformers_resnet("basic"), "residual", 4),
    "transformers bottleneck": (lambda: transformers_resnet("bottleneck"), "residual", 4),
    "smp Unet": (unet, "residual", 16),
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def output(model, x=X):
    y = model(x)
    return getattr(y, "logits", y)


@pytest.mark.parametrize("gate", ["spem", pytest.param("se", marks=pytest.mark.gates)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_library_takes_gates_and_gives_them_back(name, gate):
    build, at, slots = NETWORKS[name]
    torch.manual_seed(0)
    plain = build().eval()
    model = copy.deepcopy(plain)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    report = attach(model, gate, at=at, optimizer=optimizer)
    assert len(report) == slots
    keys = plain.state_dict().keys()
    assert keys < model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(output(model), output(plain))
    loaded = load_backbone(model, plain.state_dict())
    assert len(loaded.loaded) == len(keys)
    _train(model, optimizer)
    detach(model, optimizer)
    assert model.state_dict().keys() == keys
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def _train(model, optimizer):
    """Two steps: timm starts the last norms at 0, whose gates get their first gradient then."""
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".gate." in n}
    for _ in range(2):
        _squares(output(model)).backward()
        optimizer.step()
    moved = [n for n, p in model.named_parameters() if n in before and not p.equal(before[n])]
    assert moved
    model.eval()


def _squares(outputs):
    """The mean square of a tensor, or the sum over those that a detector returns."""
    if isinstance(outputs, torch.Tensor):
        return outputs.square().mean()
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return sum(map(_squares, (v for v in values if isinstance(v, torch.Tensor))))


def test_batch_norms_fold_and_their_subclasses_are_hooked():
    resnet = attach(torchvision.models.resnet18(), "spem")
    assert {entry.path for entry in resnet} == {"norm"}
    regnet = attach(timm.create_model("regnety_004"), "spem")
    assert {entry.path for entry in regnet} == {"hook"}


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n.yaml"])
def test_yolo_takes_gates_by_name_and_refuses_to_lose_them(name):
    torch.manual_seed(0)
    model = yolo(name).eval()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    report = attach(model, "spem", at="model.*.cv2.bn", optimizer=optimizer)
    assert len(report) >= 6
    assert plain.state_dict().keys() < model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(model(X)[0], plain(X)[0])
    load_backbone(model, plain.state_dict())
    _train(model, optimizer)
    fused = copy.deepcopy(model)
    fused.fuse(verbose=False)
    with pytest.raises(RuntimeError, match="is lost"):
        fused(X)
    detach(model, optimizer)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    model.fuse(verbose=False)(X)


def test_se_equals_timms_but_for_the_rounding_of_its_width():
    # timm rounds the hidden width up to a multiple of 8 and names its convolutions otherwise.
    theirs = timm.layers.SEModule(256, rd_ratio=1 / 16, rd_divisor=1).double()
    ours = create_gate("se", 256).double()
    for mine, other in (("fc1", "fc1"), ("fc2", "fc2")):
        layer, conv = getattr(ours, mine), getattr(theirs, other)
        layer.weight.data.copy_(conv.weight.data.flatten(1))
        layer.bias.data.copy_(conv.bias.data)
    x = torch.randn(2, 256, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [16, 64, 256])
def test_eca_equals_timms(channels):
    # timm raises kernels below 3 to 3, which these widths do not need.
    theirs = timm.layers.EcaModule(channels).double()
    ours = create_gate("eca", channels).double()
    ours.conv.weight.data.copy_(theirs.conv.weight.data)
    x = torch.randn(2, channels, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)


def test_a_converted_norm_keeps_its_class_in_a_pickle():
    import pickle

    model = torchvision.models.resnet18()
    attach(model, "spem")
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin.layer1[0].bn2) is GatedBatchNorm2d
    assert isinstance(twin.layer1[0].bn1, nn.BatchNorm2d)
