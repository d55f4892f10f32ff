"""deploy and detach where weights are shared, pruned, parametrised or standardised."""

import copy

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, randomise
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import spem

X = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Standardised(nn.Conv2d):
    """A convolution with weights of mean 0 and deviation 1, as in timm."""

    def forward(self, x):
        """Return the convolution of x."""
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, padding=self.padding)


class Pair(nn.Module):
    """Two convolutions with norms."""

    def __init__(self, conv=nn.Conv2d):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = conv(16, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x):
        """Return the second norm's output."""
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


def share_scale(model):
    """Give both norms one scale."""
    model.bn2.weight = model.bn1.weight


def prune_norms(model):
    """Prune the scales of the norms."""
    for norm in (model.bn1, model.bn2):
        prune.l1_unstructured(norm, "weight", 0.3)


def prune_convolutions(model):
    """Prune the weights of the convolutions."""
    for conv in (model.conv1, model.conv2):
        prune.l1_unstructured(conv, "weight", 0.3)


def parametrise_norms(model):
    """Compute the scales of the norms from other parameters."""
    for norm in (model.bn1, model.bn2):
        parametrize.register_parametrization(norm, "weight", nn.Softplus())


def normalise_weights(model):
    """Compute the weights of the convolutions from other parameters."""
    for conv in (model.conv1, model.conv2):
        parametrizations.weight_norm(conv)


def build(gate, at=("bn1", "bn2"), change=None, conv=nn.Conv2d):
    """Return a network in evaluation mode that has gates, and is changed after."""
    torch.manual_seed(0)
    model = Pair(conv)
    for norm in (model.bn1, model.bn2):
        norm.weight.data.uniform_(0.5, 2)
        norm.running_var.uniform_(0.5, 2)
    spem.attach(model, gate, at=list(at), **OPTIONS.get(gate, {}))
    if change is not None:
        change(model)
    return randomise(model).double().eval()


CHANGES = [share_scale, prune_norms, prune_convolutions, parametrise_norms, normalise_weights]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("gate", [*EACH_GATE, "asr"])
@torch.no_grad()
def test_deployed_networks_of_such_weights_compute_the_same_or_are_refused(gate, fold, change):
    model = build(gate, change=change)
    expected = model(X)
    options = {"fold_batchnorm": True, "example": X} if fold else {}
    if gate == "asr" and change in (prune_norms, parametrise_norms):
        with pytest.raises(ValueError, match=r"computed from others.* make them permanent before"):
            spem.deploy(model, **options)
        return
    torch.testing.assert_close(spem.deploy(model, **options)(X), expected)


@pytest.mark.parametrize("gate", [*EACH_GATE, "asr"])
@torch.no_grad()
def test_norms_are_not_folded_into_convolutions_of_another_forward_pass(gate):
    model = build(gate, conv=Standardised)
    deployed = spem.deploy(model, fold_batchnorm=True, example=X)
    torch.testing.assert_close(deployed(X), model(X))


@pytest.mark.parametrize("at", ["conv2", "0"])
def test_constant_gates_behind_other_modules_are_refused(at):
    model = build("se", conv=Standardised)
    spem.detach(model)
    if at == "0":  # a block that has a `conv2`, behind which a norm follows
        model = nn.Sequential(model, nn.ReLU())
    spem.attach(model, "asr", at=at, channels=16)
    with pytest.raises(ValueError, match=r"of PyTorch's own class.* attach it to one of these"):
        spem.deploy(model)


@pytest.mark.parametrize("gate", EACH_GATE)
def test_detach_refuses_parametrised_norms_until_they_are_norms_again(gate):
    model = build(gate, change=parametrise_norms)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="'bn1' is a ParametrizedGatedBatchNorm2d by now: undo"):
        spem.detach(model)
    assert model.state_dict().keys() == before.state_dict().keys()
    torch.testing.assert_close(model(X), before(X))
    for norm in (model.bn1, model.bn2):
        parametrize.remove_parametrizations(norm, "weight")
    spem.detach(model)
    assert type(model.bn1) is nn.BatchNorm2d
