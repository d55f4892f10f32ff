"""What is compiled of gates and norms: how often, what is noticed, what is freed."""

import gc
import sys
import weakref

import pytest
import torch
from fused_cases import drawn
from torch import nn
from torch.nn.utils import parametrize

import spem
from spem import gates, kernels
from spem.gates.excitation import _copy_for_compiler, compilable
from spem.kernels import inductor
from spem.kernels.cpu import passes
from spem.norm import GatedBatchNorm2d


def test_a_network_of_54_gates_needs_four_kernels():
    model = spem.create_model("resnet164", "spem")
    assert sum(isinstance(module, spem.Gate) for module in model.modules()) == 54
    with kernels.use("compiled"):  # tries one kernel of its own where it is the first
        before = inductor.count()
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    # Norms with and without a gate, forward and backward.
    assert inductor.count() - before <= 4


def test_one_pair_of_kernels_convolves_along_any_number_of_channels():
    with kernels.use("compiled"):
        before = inductor.count()
        for channels in (8, 12, 24):
            gate = gates.ECA(channels, kernel_size=3, pool="max").double()
            x = torch.randn(2, channels, 4, 4, dtype=torch.float64, requires_grad=True)
            gate(x).sum().backward()
    assert inductor.count() - before == 2


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 1}, {"padding": 1}, {"padding": 4, "dilation": 2, "bias": True}],
    ids=str,
)
def test_a_convolution_in_parts_equals_that_of_pytorch(options):
    options = {"kernel_size": 5} | options
    conv = nn.Conv1d(1, 1, **{"bias": False} | options).double()
    parts = _copy_for_compiler(conv)
    assert type(parts) is not nn.Conv1d
    x = torch.randn(3, 1, 11, dtype=torch.float64, requires_grad=True)
    out = conv(x)
    torch.testing.assert_close(parts(x), out)
    grad = torch.randn_like(out)
    leaves = [x, *conv.parameters()]
    expected = torch.autograd.grad(out, leaves, grad)
    for mine, theirs in zip(torch.autograd.grad(parts(x), leaves, grad), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"kernel_size": 17}, {"out_channels": 2}, {"padding": "same"}],
    ids=str,
)
def test_other_convolutions_are_left_to_the_library(options):
    conv = nn.Conv1d(1, **{"out_channels": 1, "kernel_size": 3} | options)
    assert type(_copy_for_compiler(conv)) is nn.Conv1d


def test_only_gates_that_say_so_are_compiled():
    class Loud(gates.SE):
        def excite(self, pooled):
            return super().excite(pooled)

    assert compilable(gates.SE(16))
    assert not compilable(Loud(16))
    srm = gates.SRM(16)
    assert compilable(srm)
    srm.bn = nn.SyncBatchNorm(16)
    assert not compilable(srm)
    hooked = gates.SE(16)
    hooked.fc1.register_forward_hook(lambda *_: None)
    assert not compilable(hooked)
    random = gates.SE(16, pool="srp", rho=0.5)
    assert not compilable(random)
    assert compilable(random.eval())


def test_an_option_that_changes_is_seen():
    norm = GatedBatchNorm2d(16, gate=gates.ECA(16, pool="fixed", mix=0.2)).double().eval()
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    with kernels.use("compiled"):
        before = norm(x)
        norm.gate.mix = 0.9
        assert not torch.equal(norm(x), before)
        torch.testing.assert_close(norm(x), norm.gate(nn.BatchNorm2d(16).double().eval()(x)))


def test_what_is_known_of_a_gate_follows_its_parts_and_is_freed_with_it():
    gate = gates.SE(16).double()
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    with kernels.use("compiled"):
        gate(x)
        gate.fc1 = nn.Linear(16, 3).double()
        gate.fc2 = nn.Linear(3, 16).double()
        result = gate(x)
        parametrize.register_parametrization(gate.fc2, "weight", nn.Tanh())
        bounded = gate(x)
    torch.testing.assert_close(bounded, gate(x))
    parametrize.remove_parametrizations(gate.fc2, "weight", leave_parametrized=False)
    torch.testing.assert_close(result, gate(x))
    last = weakref.ref(gate)
    del gate, result, bounded
    gc.collect()
    assert last() is None


def test_replaced_weights_and_options_are_seen():
    gate = drawn(gates.SE(16, reduction=4)).double()
    eca = drawn(gates.ECA(16)).double()
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    with kernels.use("compiled"):
        gate(x), eca(x)
        gate.fc1.weight = nn.Parameter(gate.fc1.weight[:2].clone())
        gate.fc1.bias = None
        gate.fc2.weight = nn.Parameter(torch.randn(2, 16, dtype=torch.float64).t())
        eca.conv = nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False).double()
        changed, wide = gate(x), eca(x)
    torch.testing.assert_close(changed, gate(x))
    torch.testing.assert_close(wide, eca(x))


def test_a_norm_sees_what_is_replaced_and_hooked_and_is_freed():
    norm = drawn(GatedBatchNorm2d(16, gate=gates.SE(16))).double()
    x = torch.randn(4, 16, 4, 4, dtype=torch.float64)
    ones = torch.ones(16, dtype=torch.float64)
    changes = [
        lambda norm: setattr(norm, "eps", 0.5),
        lambda norm: setattr(norm, "gate", drawn(spem.SPEM(16)).double()),
        lambda norm: setattr(norm.gate.reweight_scale, "data", ones),
        nn.Module.eval,
        lambda norm: norm.gate.register_forward_hook(print),
    ]
    for change in changes:
        with kernels.use("compiled"):
            norm(x)
            change(norm)
            changed = norm(x)
        torch.testing.assert_close(changed, norm(x))
    last = weakref.ref(norm)
    del norm, changed
    gc.collect()
    assert last() is None


def test_a_graph_that_was_used_is_freed():
    norm = GatedBatchNorm2d(8, gate=gates.SRM(8))
    x = torch.randn(4, 8, 4, 4, requires_grad=True)
    with kernels.use("compiled"):
        scaled = x * 2
        last = weakref.ref(scaled)
        norm(scaled).sum().backward()
    del scaled
    gc.collect()
    assert last() is None


def test_the_backward_pass_of_a_gate_that_is_gone_is_compiled():
    x = torch.randn(2, 12, 3, 5, requires_grad=True)
    with kernels.use("compiled"):
        # Of a kind that nothing else in the tests compiles.
        spem.create_gate("se", 12, reduction=3, pool="max")(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 5), (1, 2), (2, 0)])
def test_sums_of_everything_go_over_the_images_first(shape):
    x = torch.randn(shape, dtype=torch.float64)
    for dim, keepdim in [(None, False), ([], True), (list(range(x.dim())), True), ([1, 0], False)]:
        if dim and len(dim) < x.dim():
            assert inductor._sum(x, dim, keepdim) is NotImplemented
            continue
        found = inductor._sum(x, dim, keepdim)
        torch.testing.assert_close(found, x.sum(tuple(range(x.dim())), keepdim))
    assert inductor._sum(x, [0]) is NotImplemented
    assert inductor._sum(x, dtype=torch.float32) is NotImplemented
    assert inductor._sum(x[0, ..., :1].flatten()) is NotImplemented


def test_an_older_compiler_is_asked_what_it_knows(monkeypatch):
    class Known:
        cleared = 0

        def cache_clear(self):
            self.cleared += 1

    def refuse():
        raise OSError("unknown option -mavx512f")

    known = Known()
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", known)
    inductor.find_instructions(refuse)
    assert known.cleared == 1


def test_a_pytorch_without_the_private_modules_falls_back(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.compile_fx", None)
    monkeypatch.setattr(inductor, "_compiled", {})
    passes.why_not.cache_clear()
    try:
        assert "torch._inductor.compile_fx" in (kernels.why_not("compiled") or "")
        with pytest.raises(RuntimeError, match="cannot be compiled here"), kernels.use("compiled"):
            pass
    finally:
        passes.why_not.cache_clear()


def test_an_unknown_backend_does_not_work():
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: "):
        kernels.why_not("cuda")
