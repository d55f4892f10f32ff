"""Class activation maps of networks of other libraries, plain and with gates."""

import copy
import re
from pathlib import Path

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, randomise, randomise_norms

import spem
from spem.explain import compute_cams

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# name: the layer of the last feature map
LAYERS = {
    "torchvision resnet18": "layer4",
    "torchvision mobilenet_v3_small": "features",
    "torchvision efficientnet_b0": "features",
    "torchvision convnext_tiny": "features",
    "torchvision densenet121": "features",
    "torchvision vgg11": "avgpool",
    "torchvision squeezenet1_1": "classifier.2",
    "torchvision googlenet": "inception5b",
    "timm resnet18": "layer4",
    "timm mobilenetv3_small_100": "blocks",
    "timm efficientnet_b0": "bn2",
    "timm convnext_atto": "norm_pre",
    "timm densenet121": "features",
    "timm regnety_002": "final_conv",
    "timm hrnet_w18_small": "final_layer",
    "hf resnet": "resnet.encoder.stages.1",
}
_FEW = (
    "torchvision resnet18",
    "torchvision densenet121",
    "timm mobilenetv3_small_100",
    "hf resnet",
)


def build(name):
    library, own = name.split()
    torch.manual_seed(0)
    if library == "hf":
        sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
        config = transformers.ResNetConfig(**sizes, layer_type="basic", num_labels=5)
        return randomise_norms(transformers.ResNetForImageClassification(config))
    if library == "timm":
        return timm.create_model(own, num_classes=5)
    return torchvision.models.get_model(own, num_classes=5, weights=None)


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in _FEW else pytest.mark.gates) for n in LAYERS]
)
def test_the_last_feature_map_is_found_and_explained(name):
    model = build(name)
    model.requires_grad_(False)  # frozen; some have in-place activations
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    found = compute_cams(model, X, classes=torch.tensor([1, 4]))
    assert found.layer.startswith(LAYERS[name])
    assert found.maps.shape[0] == 2
    assert found.maps.isfinite().all()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    raw = model.eval()(X)
    torch.testing.assert_close(getattr(raw, "logits", raw), found.logits)
    high = compute_cams(model, X, classes=torch.tensor([1, 4]), method="hirescam")
    assert high.maps.shape == found.maps.shape


@pytest.mark.parametrize("gate", EACH_GATE)
def test_a_network_with_gates_is_explained_as_it_was_where_they_are_the_identity(gate):
    plain = build("torchvision resnet18").eval()
    model = copy.deepcopy(plain)
    options = OPTIONS.get(gate, {})
    spem.attach(model, gate, at="residual", **options)
    if torch.equal(model(X), plain(X)):
        torch.testing.assert_close(compute_cams(model, X).maps, compute_cams(plain, X).maps)
    changed = compute_cams(randomise(model), X)
    assert changed.maps.isfinite().all()
    assert changed.maps.max() > 0


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {"__name__": "__main__"}
    exec(compile(block, "explain.md", "exec"), names)
    assert [each.label for each in names["found"]] == ["palace"] * 3
    # The maps lie on the palace, at the left.
    for each in names["found"]:
        left, right = each.cam[:, :4].mean(), each.cam[:, 5:].mean()
        assert left > 3 * right
    assert Path("explain.png").stat().st_size > 100_000
