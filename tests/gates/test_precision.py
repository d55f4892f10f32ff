"""Parameters of gates in other dtypes and forms than they were built with."""

import copy

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, build_gated
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, prune

from spem import kernels
from spem.gates import GATES, Attention, create_gate

X = torch.randn(3, 16, 5, 6, generator=torch.Generator().manual_seed(2))


def parameters_of(module):
    """Return module, name and value of each parameter of the gates of a module."""
    gates = [m for m in module.modules() if isinstance(m, Attention)]
    parts = dict.fromkeys(part for gate in gates for part in gate.modules())
    return [(m, n, p) for m in parts for n, p in [*m._parameters.items()] if p is not None]


def load_by_assignment(module):
    """Load a state dict of bfloat16 with `assign=True`."""
    state = {
        k: v.bfloat16() if v.is_floating_point() else v for k, v in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)


def set_data(module):
    """Narrow the parameters in place."""
    for _, _, parameter in parameters_of(module):
        parameter.data = parameter.data.bfloat16()


def replace(module):
    """Assign parameters of float16."""
    for part, name, parameter in parameters_of(module):
        setattr(part, name, nn.Parameter(parameter.detach().half()))


def widen(module):
    """Assign parameters of float64."""
    for part, name, parameter in parameters_of(module):
        setattr(part, name, nn.Parameter(parameter.detach().double()))


def prune_by_size(module):
    """Set the smaller third of each parameter to 0 before each forward pass."""
    for part, name, parameter in parameters_of(module):
        if parameter.dim() and not isinstance(part, nn.ParameterList):  # which nobody calls
            prune.l1_unstructured(part, name, 0.3)


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, value):
        """Return twice the value."""
        return 2 * value


def parametrise(module):
    """Compute each parameter from another one."""
    for part, name, _ in parameters_of(module):
        parametrize.register_parametrization(part, name, Doubled())


def run_twice(module, backend, x):
    """Return the results of two forward passes, and the gradient of x from both."""
    torch.manual_seed(0)  # some gates pool random regions in training
    x = x.clone().requires_grad_()
    with kernels.use(backend):
        outs = [module(x), module(x)]
        for out in outs:
            out.float().square().sum().backward()
    return [*(out.detach() for out in outs), x.grad]


CHANGES = [load_by_assignment, set_data, replace, widen, prune_by_size, parametrise]


@pytest.mark.parametrize(
    ("backend", "place", "change"),
    [
        *(("eager", place, change) for place in ("alone", "block") for change in CHANGES),
        ("compiled", "block", set_data),
        *(pytest.param("compiled", "block", c, marks=pytest.mark.gates) for c in CHANGES[2:]),
    ],
)
@pytest.mark.parametrize("name", EACH_GATE)
def test_changed_parameters_compute_what_their_values_say(name, change, place, backend):
    # A norm over few images magnifies rounding.
    module = build_gated(name, place, 16).train(place == "alone")
    plain = copy.deepcopy(module)
    change(module)
    values = dict(module.named_modules())
    for n, part in plain.named_modules():
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None and tensor.is_floating_point():
                tensor.data = getattr(values[n], key).detach().to(tensor.dtype)
    x = X
    if change is load_by_assignment and place == "block":  # as PyTorch's own norm wants it
        x = X.bfloat16()
    torch.testing.assert_close(run_twice(module, backend, x), run_twice(plain, backend, x))


@pytest.mark.parametrize("name", EACH_GATE)
def test_gates_are_float32_under_a_narrower_default(name):
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = build_gated(name, "alone", 16)
    finally:
        torch.set_default_dtype(torch.float32)
    tensors = [*module.parameters(), *module.buffers()]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", sorted(GATES))
def test_every_layer_of_a_gate_computes_in_the_dtype_of_its_input(name):
    variants = [OPTIONS.get(name, {})]
    if name == "spa":
        variants = [{"variant": v} for v in ("icme-a", "tmm-a")]
        sourced = ("icme-b", "icme-c", "tmm-b", "tmm-c")
        variants += [{"variant": v, "source_channels": 16} for v in sourced]
    for options in variants:
        gate = create_gate(name, 16, **{"reduction": 4} if name == "spa" else {}, **options)
        layers = [m for m in gate.modules() if isinstance(m, nn.Linear | _ConvNd | _BatchNorm)]
        assert {type(layer).__module__ for layer in layers} <= {"spem.gates.layers"}
