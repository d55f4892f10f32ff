"""Multipliers reported by a hook, and recorded over the gates of a model."""

import copy
import pickle

import pytest
import torch

import spem
from spem import create_gate, create_model, kernels
from spem.gates import record_gates
from spem.gates.excitation import compilable

X = torch.randn(3, 16, 5, 5, generator=torch.Generator().manual_seed(2))


class Collected(list):
    """A hook that can be copied and pickled."""

    def __call__(self, gate, multiplier):
        self.append(multiplier)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spem", {}),
        ("se", {"init": "identity"}),
        ("srm", {}),
        ("iebn", {}),
        ("fcanet", {"frequencies": "low4", "reduction": 4}),
        ("spa", {"reduction": 4}),
        ("cbam", {"spatial": False, "reduction": 4}),
    ],
)
def test_a_hook_receives_what_the_feature_map_is_multiplied_by(name, options):
    gate, seen = create_gate(name, 16, **options), Collected()
    handle = gate.register_multiplier_hook(seen)
    with kernels.use("eager"):
        out = gate(X)
        (multiplier,) = seen
        torch.testing.assert_close(out, X * multiplier[..., None, None])
        handle.remove()
        gate(X)
    assert len(seen) == 1


def test_a_deployed_gate_calls_its_hooks():
    gate, seen = create_gate("spem", 16).eval().deployed(), Collected()
    gate.register_multiplier_hook(seen)
    out = gate(X)
    torch.testing.assert_close(out, X * seen[0][..., None, None])


def test_hooks_are_copied_and_pickled_as_those_of_modules():
    gate = create_gate("se", 16)
    without = copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))
    handle = gate.register_multiplier_hook(Collected())
    copies = copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))
    handle.remove()
    for other, calls in [(gate, 0), *((c, 0) for c in without), *((c, 1) for c in copies)]:
        other(X)
        assert [len(hook) for hook in other._multiplier_hooks.values()] == [1] * calls


def test_no_kernel_that_is_made_once_serves_a_gate_with_a_hook():
    gate = create_gate("spem", 16)
    assert compilable(gate)
    handle = gate.register_multiplier_hook(Collected())
    assert not compilable(gate)
    handle.remove()
    assert compilable(gate)


def test_the_gates_of_a_model_are_recorded_by_name():
    model, images = create_model("resnet8", "spem"), torch.randn(2, 3, 16, 16)
    spem.attach(model, "sge", at="stage", groups=4)
    with record_gates(model) as gates:
        model(images)
        model(images[:1])
    names = [name for name, module in model.named_modules() if isinstance(module, spem.Attention)]
    assert list(gates) == names
    shapes = {name: [tuple(m.shape) for m in found] for name, found in gates.items()}
    assert shapes["layer2.0.bn2.gate"] == [(2, 32), (1, 32)]
    # Its multipliers differ between the positions of a channel.
    assert shapes["layer2.0.gate"] == []
    assert not any(multiplier.requires_grad for found in gates.values() for multiplier in found)
    model(images)
    assert len(gates["layer2.0.bn2.gate"]) == 2


def test_the_record_ends_where_the_block_is_left_by_an_error():
    model = create_model("resnet8", "spem")
    with pytest.raises(RuntimeError, match="stop"), record_gates(model):
        raise RuntimeError("stop")
    assert not any(
        module._multiplier_hooks for module in model.modules() if isinstance(module, spem.Attention)
    )
