"""Class activation maps against their published formulas and captum, and a model left as it was."""

import copy

import pytest
import torch
from captum.attr import LayerGradCam
from gatings import EACH_GATE, OPTIONS, randomise, randomise_norms
from torch import nn

import spem
from spem.explain import compute_cams
from spem.explain.cam import METHODS

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def network(gate="spem", **options):
    return randomise_norms(randomise(spem.create_model("resnet8", gate, **options))).eval()


def small():
    """A network in float64 that is linear above its feature map."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    return model.double().eval()


def derivatives(model, image, label):
    """The feature map of an image, and the derivatives of orders 1 to 3 of exp(logit) by each of
    its numbers alone, by automatic differentiation."""
    activation = model[0](image[None]).detach()[0]

    def along(place):
        step = torch.zeros(activation.numel(), dtype=activation.dtype)
        step[place] = 1
        far = torch.zeros((), dtype=activation.dtype, requires_grad=True)
        moved = activation + far * step.view_as(activation)
        value, found = model[1:](moved[None])[0, label].exp(), []
        for _ in range(3):
            (value,) = torch.autograd.grad(value, far, create_graph=True)
            found.append(value)
        return torch.stack(found)

    orders = torch.stack([along(place) for place in range(activation.numel())])
    return activation, *orders.T.reshape(3, *activation.shape)


def published(method, model, image, label):
    activation, first, second, third = (d.detach() for d in derivatives(model, image, label))
    score = model(image[None])[0, label].exp().detach()
    if method == "gradcam++":
        map_ = torch.zeros(activation.shape[1:], dtype=torch.float64)
        for channel, g1, g2, g3 in zip(activation, first, second, third, strict=True):
            weight = 0.0
            for i in range(channel.shape[0]):
                for j in range(channel.shape[1]):
                    below = 2 * g2[i, j] + channel.sum() * g3[i, j]
                    alpha = g2[i, j] / below if below else 0.0
                    weight += alpha * max(g1[i, j], 0.0)
            map_ += weight * channel
        return map_.clamp(min=0) / score
    gradient = first / score
    if method == "gradcam":
        gradient = gradient.mean((1, 2), keepdim=True)
    return (gradient * activation).sum(0).clamp(min=0)


@pytest.mark.parametrize("method", METHODS)
def test_maps_follow_the_published_formulas(method):
    model, images = small(), X[:1, :, :5, :5].double()
    found = compute_cams(model, images, method=method, classes=1, layer="0")
    for image, map_ in zip(images, found.maps, strict=True):
        expected = published(method, model, image, 1)
        torch.testing.assert_close(map_, expected.float(), rtol=1e-5, atol=1e-7)
    assert found.maps.max() > 0


@pytest.mark.parametrize("gate", EACH_GATE)
def test_grad_cam_is_that_of_captum(gate):
    model = network(gate, **OPTIONS.get(gate, {}))
    found = compute_cams(model, X)
    captum = LayerGradCam(model, model.get_submodule(found.layer))
    expected = captum.attribute(X, target=found.classes, relu_attributions=True)
    torch.testing.assert_close(found.maps, expected[:, 0].detach(), rtol=1e-4, atol=1e-6)


def state_of(model):
    modules = dict(model.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()]
    grads = [(p.grad if p.grad is None else p.grad.clone(), p.requires_grad) for p in _parts(model)]
    return [m.training for m in modules.values()], hooks, grads


def _parts(model):
    return list(model.parameters())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("gate", EACH_GATE)
def test_the_model_is_left_as_it_was(gate, frozen):
    model = network(gate, **OPTIONS.get(gate, {})).train()
    model.layer2.eval()
    model.requires_grad_(not frozen)
    if not frozen:
        model(X).sum().backward()
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    generator, inference = torch.get_rng_state(), torch.is_inference_mode_enabled()
    free = compute_cams(model, X)
    with torch.no_grad():
        assert torch.equal(compute_cams(model, X).maps, free.maps)
    after = state_of(model)
    assert after[:2] == before[:2]
    for (grad, wanted), (other, kept) in zip(before[2], after[2], strict=True):
        assert wanted == kept
        assert grad is other is None or torch.equal(grad, other)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_inference_mode_enabled() == inference


class InPlace(nn.Module):
    """A network whose last feature map is changed by an in-place ReLU behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(nn.functional.relu(self.conv(x), inplace=True).mean((2, 3)))


def test_an_in_place_relu_behind_the_layer_changes_nothing():
    model = InPlace().eval()
    found = compute_cams(model, X, method="hirescam")
    assert found.layer == "conv"
    activation = model.conv(X)
    rows = model.fc.weight[found.classes] / activation[0, 0].numel()
    expected = (rows[..., None, None] * activation * (activation > 0)).sum(1).relu()
    torch.testing.assert_close(found.maps, expected.detach())


def test_maps_of_a_batch_are_those_of_each_image_and_of_the_class_asked_for():
    model, wanted = network(), torch.tensor([4, 0, 9])
    together = compute_cams(model, X, classes=wanted)
    for image, label, map_ in zip(X, wanted.tolist(), together.maps, strict=True):
        alone = compute_cams(model, image[None], classes=label)
        torch.testing.assert_close(alone.maps[0], map_, rtol=1e-4, atol=1e-6)
    assert torch.equal(compute_cams(model, X).classes, model(X).argmax(1))
    assert torch.equal(compute_cams(model, X, classes=3).classes, torch.tensor([3, 3, 3]))
    torch.testing.assert_close(together.logits, model(X).detach())
    named = compute_cams(model, X, layer="layer2")
    assert (named.layer, named.maps.shape) == ("layer2", (3, 16, 16))


@pytest.mark.parametrize("name", ["preresnet8", "vgg11", "densenet10", "attention56"])
def test_the_last_feature_map_of_each_family_is_found(name):
    found = compute_cams(spem.create_model(name, "spem"), X[:1])
    assert found.maps[0].numel() > 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": "layr3"}, "unknown layer 'layr3'; known: layer3, layer3.0, layer1, …"),
        ({"layer": ""}, "unknown layer ''; known"),
        ({"layer": "fc"}, r"layer 'fc' gives \(3, 10\), must give a feature map \(N, C, H, W\) of"),
        ({"method": "gradcamm"}, r"unknown method 'gradcamm'; known: gradcam, gradcam\+\+"),
        ({"classes": 10}, "classes is 10, must be None, a class from 0 to 9, or one for each of 3"),
        ({"classes": torch.tensor([1, 2])}, "classes is Tensor of shape"),
        ({"classes": "cat"}, "classes is 'cat', must be None"),
        ({"classes": 1.5}, "classes is 1.5, must be None"),
        ({"images": X[0]}, r"images is \(3, 32, 32\)"),
        ({"images": X[:0]}, "there are no images to explain"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))},
            "this Sequential has no conv",
        ),
        ({"model": nn.Sequential(nn.Conv2d(3, 9, 1))}, "the model gave Tensor of shape"),
        (
            {"model": nn.Sequential(nn.Conv2d(3, 9, 32), nn.Flatten())},
            "no layer of this Sequential gives a feature map of more than one position for images",
        ),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(options, sentence):
    arguments = {"model": network(), "images": X} | options
    with pytest.raises(ValueError, match=sentence):
        compute_cams(arguments.pop("model"), arguments.pop("images"), **arguments)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_explained_as_it_is_uncompiled(in_place):
    plain = InPlace().eval()
    model = copy.deepcopy(plain)
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    model(X)
    found, expected = compute_cams(model, X), compute_cams(plain, X)
    assert found.layer.endswith("conv")
    torch.testing.assert_close(found.maps, expected.maps)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_model_of_torch_jit_is_refused():
    with pytest.raises(ValueError, match=r"the model is one of torch\.jit: give the module that"):
        compute_cams(torch.jit.trace(InPlace().eval(), X), X)


class Aside(InPlace):
    """A network with a layer that never runs, and one whose output nothing reads."""

    def __init__(self):
        super().__init__()
        self.unused, self.aside = nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        self.aside(x)
        return super().forward(x)


def test_a_layer_that_does_not_count_is_named():
    with pytest.raises(ValueError, match="layer 'unused' does not run when the model does"):
        compute_cams(Aside(), X, layer="unused")
    with pytest.raises(ValueError, match="do not depend on what layer 'aside' gives"):
        compute_cams(Aside(), X, layer="aside")
