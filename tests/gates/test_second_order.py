"""Every way to differentiate a gated network, in every backend: the device must not decide it."""

import copy

import pytest
import torch
from gatings import EACH_GATE, build_gated
from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.func import functional_call, grad, hessian, jvp, vmap

from spem import kernels
from spem.gates import Gate
from spem.kernels.reference import REFERENCE

X = torch.randn(3, 16, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def penalise(module, x, backend):
    """Return the gradients of a gradient penalty in the backend: x's first, then parameters'."""
    module, x = copy.deepcopy(module), x.clone().requires_grad_()
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    with kernels.use(backend):
        (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        found = torch.autograd.grad(slope.square().sum(), leaves, allow_unused=True)
    # PyTorch says None for a gradient of 0 in one formula and 0 in another.
    return [torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True)]


# Compiling takes seconds a kind of gate and place.
_PLACES = [("alone", True), ("block", False), ("block", True)]
_CASES = [
    *(("eager", *place) for place in _PLACES),
    ("compiled", "block", True),
    *(pytest.param("compiled", *place, marks=pytest.mark.gates) for place in _PLACES[:2]),
]


@pytest.mark.parametrize(("backend", "place", "training"), _CASES)
@pytest.mark.parametrize("name", EACH_GATE)
def test_gradients_of_gradients_are_those_of_the_reference(name, backend, place, training):
    module = build_gated(name, place, 16).double().train(training)
    expected, found = (penalise(module, X, each) for each in ("reference", backend))
    assert expected[0].abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("place", ["alone", "block"])
@pytest.mark.parametrize("name", EACH_GATE)
def test_the_transforms_of_torch_func_work(name, place, backend):
    module = build_gated(name, place, 16).double().eval()
    parameters = {key: p.detach() for key, p in module.named_parameters()}

    def loss(parameters, x):
        return functional_call(module, parameters, (x,)).square().sum()

    def along(a):
        return loss(parameters, a * X)

    one = torch.ones((), dtype=torch.float64)
    with kernels.use(backend):
        by_image = vmap(grad(lambda p, x: loss(p, x[None])), (None, 0))(parameters, X)
        second = hessian(along)(one)
        _, slope = jvp(along, (one,), (one,))
    # A gate without parameters has none to differentiate.
    own = dict(module.named_parameters())
    single = [torch.autograd.grad(loss(own, x[None]), [*own.values()]) for x in X if own]
    for key, *expected in zip(parameters, *single, strict=True):
        torch.testing.assert_close(by_image[key], torch.stack(expected))
    a = one.clone().requires_grad_()
    (first,) = torch.autograd.grad(along(a), a, create_graph=True)
    (twice,) = torch.autograd.grad(first, a)
    torch.testing.assert_close((slope, second), (first.detach(), twice))


def test_forward_mode_works_without_a_transform():
    module = build_gated("se", "norm", 16).double().eval()
    tangent = torch.randn_like(X)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, tangent)
        found = torch.autograd.forward_ad.unpack_dual(module(dual)).tangent
    h = 1e-6
    assert found is not None
    torch.testing.assert_close(
        found, (module(X + h * tangent) - module(X - h * tangent)) / (2 * h), rtol=1e-6, atol=1e-6
    )


def test_the_first_order_does_not_take_the_reference(monkeypatch):
    module = nn.Sequential(build_gated("se", "norm", 16)).double()
    monkeypatch.setattr(type(REFERENCE), "pool", None)
    with kernels.use("compiled"):
        module(X.clone().requires_grad_()).sum().backward()


def test_gradients_are_taken_twice_from_one_graph():
    module, x = build_gated("spem", "norm", 16).double(), X.clone().requires_grad_()
    with kernels.use("compiled"):
        total = module(x).square().sum()
        (plain,) = torch.autograd.grad(total, x, retain_graph=True)
        (again,) = torch.autograd.grad(total, x, create_graph=True)
        (last,) = torch.autograd.grad(total, x)
    torch.testing.assert_close((plain, last), (again.detach(), again.detach()))


@pytest.mark.parametrize("place", ["alone", "block"])
@pytest.mark.parametrize("name", EACH_GATE)
def test_batched_gradients_are_right_in_eager_mode_and_refused_by_kernels(name, place):
    module, x = build_gated(name, place, 16).eval(), torch.randn(2, 16, 5, 6, requires_grad=True)
    vectors = torch.randn(3, 2, 16, 5, 6)
    with kernels.use("eager"):
        y = module(x)
        each = [torch.autograd.grad(y, x, v, retain_graph=True)[0] for v in vectors]
        (found,) = torch.autograd.grad(y, x, vectors, is_grads_batched=True)
    torch.testing.assert_close(found, torch.stack(each))
    with kernels.use("compiled"):
        y = module(x)
    if not _is_from_kernels(y):
        assert place == "alone"
        assert not isinstance(module, Gate)
        torch.autograd.grad(y, x, vectors, is_grads_batched=True)
        return
    with pytest.raises(RuntimeError, match=r'write `with spem\.kernels\.use\("eager"\):`'):
        torch.autograd.grad(y, x, vectors, is_grads_batched=True)


def _is_from_kernels(y):
    """Return whether a backward pass of this library's own stands in the graph of y."""
    seen, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if isinstance(node, BackwardCFunction):
            return True
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return False
