"""Networks with gates under the tracers, exporters and quantisers of other packages."""

import copy

import pytest
import torch
from gatings import FAMILIES, OPTIONS
from torch import nn
from torch.nn.functional import cross_entropy

from spem import attach
from spem.gates import GATES

torchvision = pytest.importorskip("torchvision")

C = 16
EXAMPLE, *OTHERS = [(2, 3, 12, 12), (5, 3, 17, 22), (3, 3, 9, 30)]


def small(*tail):
    return nn.Sequential(
        nn.Conv2d(3, C, 3, padding=1),
        nn.BatchNorm2d(C),
        nn.ReLU(),
        nn.Conv2d(C, C, 3, padding=1),
        nn.BatchNorm2d(C),
        nn.ReLU(),
        *tail,
    )


def drawn(name, options):
    """A small network in evaluation mode with a gate on a norm and one on a convolution."""
    torch.manual_seed(0)
    model = small()
    attach(model, name, at=["1", "3"], **{"init": "paper"} | options)
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    model(torch.randn(8, 3, 12, 12))
    return model.eval()


# In `make test` those of few gates: the newer exporter takes a quarter of a minute for each.
_EXPORTS = [
    pytest.param(dynamo, name, marks=() if name in few else pytest.mark.gates)
    for dynamo, few in ((False, FAMILIES), (True, ("spem", "cbam")))
    for name in (*sorted(GATES), "spa tmm-a")
]


@pytest.mark.parametrize(("dynamo", "name"), _EXPORTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_onnx_file_is_right_at_other_sizes(name, dynamo, tmp_path):
    name, *variant = name.split()
    options = OPTIONS.get(name, {}) | ({"variant": variant[0]} if variant else {})
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, path = drawn(name, options), tmp_path / "model.onnx"
    free = {0: "n", 2: "h", 3: "w"}
    how = {"dynamic_shapes": ({k: torch.export.Dim(v, max=512) for k, v in free.items()},)}
    if not dynamo:
        how = {"dynamic_axes": {"x": free, "y": free}}
    torch.onnx.export(
        model,
        (torch.randn(EXAMPLE),),
        path,
        dynamo=dynamo,
        input_names=["x"],
        output_names=["y"],
        **how,
    )
    session = runtime.InferenceSession(path)
    for size in OTHERS:
        x = torch.randn(size)
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", ["spem", "cbam"])
@pytest.mark.parametrize("training", [False, True])
def test_features_have_the_names_of_the_network_without_gates(gate, training):
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5)
    plain = [name for names in get_graph_node_names(model) for name in names]
    attach(model, gate, at=["layer*.bn2", "layer1"], init="paper")
    named = [name for names in get_graph_node_names(model) for name in names]
    assert [name for name in named if "gate" not in name] == plain
    model.train(training)
    twin, seen, x = copy.deepcopy(model), {}, torch.randn(2, 3, 64, 64)
    wanted = ["layer1", "layer2.1.bn2", "fc"]
    for name in wanted:
        twin.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: out.clone()})
        )
    twin(x)
    found = create_feature_extractor(model, return_nodes=wanted[1:])(x)
    for name, value in found.items():
        torch.testing.assert_close(value, seen[name])


def test_timm_extracts_features_by_fx():
    timm = pytest.importorskip("timm")
    from timm.models._features_fx import GraphExtractNet

    model = timm.create_model("resnet18", num_classes=5).eval()
    attach(model, "spem", at="residual", init="paper")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = GraphExtractNet(model, {"fc": "out"})(x)
        torch.testing.assert_close(found, model(x))


def _gratings(count, seed):
    """Images of stripes in one of five directions under noise, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    angles = labels * (torch.pi / 5)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    along = rows * angles.cos()[:, None, None] + columns * angles.sin()[:, None, None]
    phase = 6 * torch.rand(count, 1, 1, generator=generator)
    images = (along + phase).sin()[:, None].repeat(1, 3, 1, 1)
    return images + 2 * torch.randn(images.shape, generator=generator), labels


def _train(model):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    images, labels = _gratings(1024, 0)
    for _ in range(4):
        for x, y in zip(images.split(64), labels.split(64), strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def _accuracy(model):
    images, labels = _gratings(1024, 1)
    return (model(images).argmax(1) == labels).float().mean().item()


def _quantise(model):
    """Return the network in 8 bits, calibrated on a part of the training images."""
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    images, _ = _gratings(256, 0)
    shapes = ({0: torch.export.Dim("n", max=4096)},)
    exported = torch.export.export(model, (images[:8],), dynamic_shapes=shapes).module()
    config = x86.get_default_x86_inductor_quantization_config()
    prepared = prepare_pt2e(exported, x86.X86InductorQuantizer().set_global(config))
    with torch.no_grad():
        prepared(images)
    return convert_pt2e(prepared)


def _classifier(gate):
    torch.manual_seed(0)
    model = small(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 5))
    if gate is not None:
        attach(model, gate, at=["1", "4"], **OPTIONS.get(gate, {}))
    return _train(model)


@pytest.mark.parametrize(
    "gate", ["spem", *(pytest.param(n, marks=pytest.mark.gates) for n in ("se", "cbam", "srm"))]
)
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_network_loses_no_more_than_one_without_gates(gate):
    losses = []
    for each in (None, gate):
        model = _classifier(each)
        quantised, accuracy = _quantise(model), _accuracy(model)
        assert accuracy > 0.6
        layers = [n for n in quantised.graph.nodes if "per_channel" in str(n.target)]
        assert len(layers) >= 3  # both convolutions and the classifier, as without gates
        losses.append(accuracy - _accuracy(quantised))
    assert losses[1] <= max(losses[0], 0) + 0.02
