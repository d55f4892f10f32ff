"""Blocks whose forward pass goes through their own children, of which a gate would be one more."""

import copy
import pickle

import pytest
import torch
from foreign import X
from gatings import EACH_GATE, OPTIONS, WITHOUT_IDENTITY, randomise
from torch import nn

from spem import attach
from spem.surgery.iteration import looks_at_children


def layers(width=8):
    return [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = layers()


class Children(Block):
    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


class Modules(Block):
    def forward(self, x):
        return [x := child(x) for child in self._modules.values()][-1]


class ByHelper(Block):
    def forward(self, x):
        return self.run(x)

    def run(self, x):
        for _, child in self.named_children():
            x = child(x)
        return x


class Inherited(Children):
    def forward(self, x):
        return super().forward(x) + x


class InGenerator(Block):
    def forward(self, x):
        return sum(child(x) for child in self.children())


class Dunder(Block):
    def __iter__(self):
        return iter(self._modules.values())

    def forward(self, x):
        for child in self:
            x = child(x)
        return x


class Dense(nn.Sequential):
    """As torchvision's old dense layers: the input is kept."""

    def __init__(self):
        super().__init__(*layers())

    def forward(self, x):
        return torch.cat([x, super().forward(x)], 1)


class Collecting(nn.ModuleDict):
    """As torchvision's dense blocks."""

    def __init__(self):
        super().__init__({"a": nn.Conv2d(8, 8, 1), "b": nn.Conv2d(16, 8, 1)})

    def forward(self, x):
        outputs = [x]
        for child in self.values():
            outputs.append(child(torch.cat(outputs, 1)))
        return torch.cat(outputs, 1)


class Indexing(nn.ModuleList):
    def __init__(self):
        super().__init__(layers())

    def forward(self, x):
        return self[-1](self[len(self) - 2](self[0](x)))


class Parent(nn.Module):
    """Iterates the children of a child, and the modules of itself: a gate does no harm there."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*layers())

    def forward(self, x):
        assert len(list(self.modules())) >= 5
        for layer in self.body.children():
            x = layer(x)
        for layer in self.body:
            x = layer(x)
        return x


ITERATING = [Children, Modules, ByHelper, Inherited, InGenerator, Dunder]
ITERATING += [Dense, Collecting, Indexing, nn.Sequential]


def behind(block):
    return nn.Sequential(nn.Conv2d(3, 8, 1), block)


@pytest.mark.parametrize("kind", ITERATING)
def test_such_blocks_are_recognised(kind):
    assert looks_at_children(kind())
    # Trees of other libraries patch the forward pass of a single object.
    patched = Parent()
    assert not looks_at_children(patched)
    patched.forward = Children().forward
    assert looks_at_children(patched)


@pytest.mark.parametrize("gate", EACH_GATE)
@pytest.mark.parametrize("kind", [kind for kind in ITERATING if kind is not nn.Sequential])
def test_such_a_block_is_refused_with_a_placement_that_works(kind, gate):
    options = OPTIONS.get(gate, {})
    plain = behind(kind())
    model = copy.deepcopy(plain)
    with pytest.raises(ValueError, match=r"goes through its own children.*like at='1") as caught:
        attach(model, gate, at="1", channels=8, **options)
    assert model.state_dict().keys() == plain.state_dict().keys()
    attach(model, gate, at=str(caught.value).split("'")[3], example=X, **options)
    if gate not in WITHOUT_IDENTITY:
        assert torch.equal(model.eval()(X), plain.eval()(X))
    twin = pickle.loads(pickle.dumps(randomise(model)))
    assert torch.equal(twin(X), model(X))
    calls = []
    (applied,) = (m for m in model[1].modules() if getattr(m, "gate", None) is not None)
    applied.gate.register_forward_pre_hook(lambda *_: calls.append(1))
    model(X)
    assert len(calls) <= 1  # a norm asks pooled gates for their coefficients


def test_a_shortcut_without_layers_takes_no_gate():
    with pytest.raises(ValueError, match=r"'1' \(Sequential\) goes through its own children"):
        attach(behind(nn.Sequential()), "se", at="1", channels=8)


@pytest.mark.parametrize("gate", EACH_GATE)
def test_a_block_that_is_iterated_by_another_runs_its_gate_once(gate):
    model = behind(Parent()).eval()
    attach(model, gate, at="1", **OPTIONS.get(gate, {}))
    calls = []
    model[1].gate.register_forward_hook(lambda *_: calls.append(1))
    model(X)
    assert calls == [1]


def test_a_sequential_that_ends_in_a_shared_module_is_refused():
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), act, nn.Sequential(*layers()[:2], act))
    with pytest.raises(ValueError, match=r"'2' ends in a module that stands in 2 places, 1, 2\.2"):
        attach(model, "se", at="2")
    attach(model, "se", at="2.1")
    model(X)
    shared = nn.Sequential(*layers())
    whole = nn.Sequential(nn.Conv2d(3, 8, 1), shared, shared)
    assert len(attach(whole, "se", at="1")) == 1
