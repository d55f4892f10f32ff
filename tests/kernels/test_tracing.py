"""Networks with gates under PyTorch's tracers and exporters, at other sizes than the example's."""

import copy
import warnings

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, build_gated
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import spem
from spem import kernels
from spem.gates import GATES
from spem.kernels.reference import REFERENCE

THOROUGH = pytest.mark.gates
C = 16
VARIANTS = [
    *((name, OPTIONS.get(name, {})) for name in GATES),
    ("gct", {"mode": "l1"}),
    ("cbam", {"pools": ("lp", "lse")}),
    ("spa", {"variant": "tmm-a"}),
    ("fcanet", {"dct_size": 12}),  # the size of the example
    ("asr", {"attention": "sem", "both": True}),
]
EXAMPLE, *OTHERS = [(2, 3, 12, 12), (5, 3, 17, 22), (3, 3, 9, 30)]


def variants(*thorough):
    """Every gate; those that are not of the named ones only in the thorough tests."""
    marks = {True: (), False: THOROUGH}
    ids = [f"{name}-{options}" if options else name for name, options in VARIANTS]
    return pytest.mark.parametrize(
        ("name", "options"),
        [
            pytest.param(*variant, id=label, marks=marks[variant[0] in thorough])
            for variant, label in zip(VARIANTS, ids, strict=True)
        ],
    )


EACH = variants(*GATES)
WHERE = pytest.mark.parametrize(
    "at", ["1", pytest.param("0", marks=THOROUGH)], ids=["norm", "hook"]
)


def network(name, options, at="1"):
    """Two convolutions with gates behind their norms, or hooked, and drawn parameters."""
    model = nn.Sequential(
        nn.Conv2d(3, C, 3, padding=1),
        nn.BatchNorm2d(C),
        nn.ReLU(),
        nn.Conv2d(C, C, 3, padding=1),
        nn.BatchNorm2d(C),
    )
    spem.attach(model, name, at=[at, str(int(at) + 3)], **{"init": "paper"} | options)
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    model(torch.randn(8, 3, 12, 12))  # moves the running statistics
    return model.eval()


def draw(size):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def assert_follows(traced, model):
    """Check a traced network against the network itself at two further sizes."""
    for size in OTHERS:
        torch.testing.assert_close(traced(draw(size)), model(draw(size)), rtol=1e-4, atol=1e-5)


def sizes():
    return {0: Dim("n", max=64), 2: Dim("h", min=4, max=512), 3: Dim("w", min=4, max=512)}


@WHERE
@EACH
@pytest.mark.parametrize("grad", [True, pytest.param(False, marks=THOROUGH)])
def test_traced_by_jit(name, options, at, grad):
    model = network(name, options, at)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        # One that a size became a constant would be an error.
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)
        traced = torch.jit.trace(model, draw(EXAMPLE), check_trace=False)
        assert_follows(traced, model)
    assert "PythonOp" not in str(traced.inlined_graph)


@EACH
def test_traced_by_jit_for_a_single_position(name, options):
    gate = spem.create_gate(name, C, **options).eval()
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)
        traced = torch.jit.trace(gate, torch.randn(2, C, 6, 6), check_trace=False)
    x = torch.randn(3, C, 1, 1)
    torch.testing.assert_close(traced(x), gate(x))


@WHERE
@variants("spem", "sge")
def test_exported(name, options, at):
    model = network(name, options, at)
    exported = torch.export.export(model, (draw(EXAMPLE),), dynamic_shapes=(sizes(),))
    assert_follows(exported.module(), model)


@variants("se")
def test_exported_for_training(name, options):
    model = network(name, options).train()
    twin, example = copy.deepcopy(model), (draw(EXAMPLE),)
    if name == "srp":
        with pytest.raises(ValueError, match=r"draws regions in training.*call eval\(\) before"):
            torch.export.export(model, example, dynamic_shapes=(sizes(),))
        return
    exported = torch.export.export(model, example, dynamic_shapes=(sizes(),)).module()
    assert_follows(exported, twin)
    for key, value in twin.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(exported.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@variants()  # each takes more than ten seconds
def test_compiled_for_free_sizes(name, options):
    torch.compiler.reset()
    model = network(name, options)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    compiled(draw(EXAMPLE))
    assert_follows(compiled, model)


@variants("se")
def test_traced_by_make_fx(name, options):
    model = network(name, options)
    trace = make_fx(lambda x: model(x), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    with torch.no_grad():
        assert_follows(trace(draw(EXAMPLE)), model)


@WHERE
@EACH
@pytest.mark.parametrize("training", [False, pytest.param(True, marks=THOROUGH)])
def test_traced_by_fx_as_leaves(name, options, at, training):
    model = network(name, options, at).train(training)
    twin = copy.deepcopy(model)
    traced = torch.fx.symbolic_trace(model)
    for size in OTHERS:
        results = []
        for each in (traced, twin):
            torch.manual_seed(1)
            results.append(each(draw(size)))
        assert torch.equal(*results)
    assert torch.fx.symbolic_trace(traced).code == traced.code


@pytest.mark.parametrize("path", ["norm", "hook", "block", "folded"])
def test_an_fx_leaf_runs_its_hooks_once_and_keeps_its_name(path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)

        def forward(self, x):
            return self.bn(self.conv(x)).relu()

    model = nn.Sequential(Block()).eval()
    at = {"norm": "0.bn", "hook": "0.conv", "block": "0", "folded": "0.bn"}[path]
    spem.attach(model, "se", at=at, init="paper")
    if path == "folded":
        model = spem.deploy(model, fold_batchnorm=True, example=draw(EXAMPLE))
    leaf = {"norm": "0.bn", "hook": "0.conv", "block": "0.gate", "folded": "0.bn"}[path]
    calls = []
    model.get_submodule(leaf).register_forward_hook(lambda *_: calls.append(1))
    traced = torch.fx.symbolic_trace(model)
    assert not calls
    assert torch.equal(traced(draw(EXAMPLE)), model(draw(EXAMPLE)))
    assert len(calls) == 2
    assert leaf in [node.target for node in traced.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("gate", [None, "spem", "srm"])
@pytest.mark.parametrize("name", ["resnet8", "preresnet11", "vgg11", "densenet22", "attention56"])
def test_networks_of_this_library_are_traced_by_fx(name, gate):
    model = spem.create_model(name, gate).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


def _seen(trace):
    """Return the backends that are chosen while `trace` traces a function."""
    seen = []

    def function(x):
        seen.append(kernels.chosen(x))
        return x * 2

    trace(function)
    return seen


TRACERS = {
    "jit": lambda f: torch.jit.trace(f, torch.ones(1, 2, 3, 3), check_trace=False),
    "make_fx": lambda f: make_fx(f)(torch.ones(1, 2, 3, 3)),
    "fake": lambda f: make_fx(f, tracing_mode="fake")(torch.ones(1, 2, 3, 3)),
    "export": lambda f: torch.export.export(_Called(f), (torch.ones(1, 2, 3, 3),)),
}


class _Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("forced", [None, "eager"])
@pytest.mark.parametrize("tracer", TRACERS)
def test_every_tracer_sees_the_reference_backend(tracer, forced, grad):
    with torch.set_grad_enabled(grad):
        if forced is None:
            seen = _seen(TRACERS[tracer])
        else:
            with kernels.use(forced):
                seen = _seen(TRACERS[tracer])
    assert set(seen) == {REFERENCE}


def test_stand_ins_for_tensors_are_left_to_the_reference_backend():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert kernels.chosen(torch.ones(1, 2, 3, 3)) is REFERENCE
    assert kernels.chosen(nn.Parameter(torch.ones(1, 2, 3, 3))) is not REFERENCE


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_random_regions_are_not_traced_in_training():
    gate = spem.create_gate("srp", C, rho=0.5)
    with pytest.raises(ValueError, match=r"draws regions in training.*call eval\(\) before"):
        torch.jit.trace(gate, torch.randn(2, C, 6, 6))


@pytest.mark.parametrize("place", ["alone", "norm", "block"])
@pytest.mark.parametrize("name", EACH_GATE)
def test_torch_script_is_refused_with_what_works(name, place):
    with pytest.raises(RuntimeError, match=r"cannot compile .*: write torch\.jit\.trace"):
        torch.jit.script(build_gated(name, place, 16))
