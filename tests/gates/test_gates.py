"""What every gate of the registry has in common."""

import copy
import pickle
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from spem.gates import GATES, create_gate

# Where none of the defaults fits 16 channels, or there is none.
OPTIONS = {"srp": {"rho": 0.5}, "ema": {"factor": 4}}
OPTIONS |= {name: {"groups": 4} for name in ("sge", "sa", "lct")}
# They add to each position, too: in half precision a sum has the errors of both its terms.
ADDING = ("gc", "grn")
VARIANTS = [
    *((name, OPTIONS.get(name, {})) for name in GATES),
    ("se", {"pool": "adaptive", "bias": False}),
    ("gct", {"mode": "l1"}),
    ("cbam", {"pools": ("lp", "lse"), "spatial": False}),
    ("spa", {"variant": "tmm-a"}),
    ("asr", {"attention": "sem", "both": True}),
]
EACH = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{n}-{o}" if o else n for n, o in VARIANTS]
)
CHANNELS = 16
WITH_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, WITH_CUDA])]


def network(name, options):
    """A gate with drawn parameters; of DIANet two, the second led by the first."""
    gates = [create_gate(name, CHANNELS, **options)]
    if name == "dianet":
        gates.append(create_gate(name, CHANNELS, leader=gates[0], **options))
    for parameter in nn.ModuleList(gates).parameters():
        nn.init.normal_(parameter, std=0.5)
    return nn.Sequential(*gates)


def batch(n=4, size=6, **options):
    return torch.randn(n, CHANNELS, size, size, **options)


@EACH
def test_every_parameter_learns(name, options):
    """In one of a few draws: in any single one a hidden unit may be off for all images."""
    learned, names = set(), {key for key, _ in network(name, options).named_parameters()}
    for _ in range(4):
        model, x = network(name, options), batch() + torch.randn(4, CHANNELS, 1, 1)
        x.requires_grad_()  # some gates have no parameters
        loss = (model(x) * torch.randn_like(x)).sum()
        terms = [gate.auxiliary_loss() for gate in model]
        sum((term for term in terms if term is not None), loss).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if parameter.grad.abs().max() > 0:
                learned.add(key)
        if learned == names:
            return
    assert learned == names


@EACH
def test_copies_after_a_forward(name, options):
    model = network(name, options)
    model[0](batch())
    x = batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.eval()(x), model.eval()(x))
        assert [k for k, _ in other.named_parameters()] == [k for k, _ in model.named_parameters()]
        assert not {*map(id, other.parameters())} & {*map(id, model.parameters())}
    assert model[0].extra_repr().startswith(str(CHANNELS))
    assert repr(model[0]).startswith(type(model[0]).__name__)


def test_a_copy_draws_what_its_original_draws():
    gate = create_gate("srp", CHANNELS, rho=0.5)
    gate.generator = torch.Generator().manual_seed(3)
    x = batch()
    copies = copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))
    expected = gate(x)
    for other in copies:
        assert torch.equal(other(x), expected)


@EACH
def test_the_state_travels(name, options):
    model, other = network(name, options).eval(), network(name, options).eval()
    x = batch()
    assert torch.equal(other(x), model(x)) == (not [*model.parameters()])
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(other(x), model(x))


def seeded(model, x):
    """What a copy of the model returns, the same random regions each time."""
    torch.manual_seed(1)
    return copy.deepcopy(model)(x)


TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@EACH
@TRAINING
def test_autocast_does_not_reach_a_gate(name, options, training):
    model, x = network(name, options).train(training), batch()
    with torch.autocast("cpu", torch.bfloat16):
        inside = seeded(model, x)
    assert torch.equal(inside, seeded(model, x))


@EACH
@TRAINING
def test_half_precision(name, options, training):
    model, x = network(name, options).train(training), batch().bfloat16()
    for module in (model, copy.deepcopy(model).bfloat16()):
        out = seeded(module, x)
        assert {p.dtype for p in module.parameters()} <= {torch.float32}
        atol = 2**-7 if name in ADDING else 1e-5
        torch.testing.assert_close(out, seeded(module, x.float()).bfloat16(), rtol=0.016, atol=atol)


@EACH
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_other_memory_formats(name, options, layout):
    model, x = network(name, options).double(), batch(size=5).double()
    other = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": torch.cat([x, x], 3)[..., :5],
        "expanded": x[:1].expand(4, -1, -1, -1),
    }[layout]
    x = other.contiguous()
    out = seeded(model, other)
    torch.testing.assert_close(out, seeded(model, x))
    if layout == "channels_last":
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert not out.is_contiguous()


@EACH
@TRAINING
def test_an_empty_batch(name, options, training):
    model = network(name, options).train(training)
    x = batch(0, requires_grad=True)
    out = model(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(value.isfinite().all() for value in model.state_dict().values())


@EACH
def test_one_image_in_evaluation(name, options):
    model, x = network(name, options).eval(), batch()
    torch.testing.assert_close(model(x[:1]), model(x)[:1])


@EACH
@TRAINING
def test_maps_of_one_position(name, options, training):
    model, x = network(name, options).train(training), batch(size=1, requires_grad=True)
    out = model(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["srm", "sge"])
def test_configurations_with_the_retired_option_parity_load(name):
    options, x = OPTIONS.get(name, {}), batch(size=1)
    expected = create_gate(name, CHANNELS, **options)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gate = create_gate(name, CHANNELS, parity=False, **options)
    assert torch.equal(gate(x), expected)
    with pytest.warns(UserWarning, match=f"the option 'parity' of gate '{name}' is gone"):
        gate = create_gate(name, CHANNELS, parity=True, **options)
    assert torch.equal(gate(x), expected)
    with pytest.raises(ValueError, match="unknown option of gate 'se' 'parity'"):
        create_gate("se", CHANNELS, parity=False)


# Near the ends of the ranges of the dtypes, and where nothing varies.
EXTREMES = {
    "large": lambda: torch.randn(2, CHANNELS, 8, 8).clamp(-3, 3) * 1e4,
    "far": lambda: torch.randn(2, CHANNELS, 8, 8) + 1e3,
    "tiny": lambda: torch.randn(2, CHANNELS, 8, 8) * 1e-7,
    "denormal": lambda: torch.randn(2, CHANNELS, 8, 8) * 1e-40,
    "constant": lambda: torch.full((2, CHANNELS, 8, 8), 3.0),
}


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", EXTREMES)
def test_extreme_maps_have_finite_gradients(name, options, dtype, kind):
    model = network(name, options)
    x = EXTREMES[kind]().to(dtype).requires_grad_()
    out = model(x)
    assert out.isfinite().all()
    out.float().sum().backward()
    assert x.grad.isfinite().all()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@EACH
def test_maps_of_zeros(name, options):
    """A residual branch whose last norm starts at 0 is flat."""
    model, x = network(name, options), torch.zeros(4, CHANNELS, 5, 5, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@EACH
@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_algorithms(name, options, device, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    model = network(name, options).to(device)
    x = batch(device=device, requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(seeded(model, x).square().sum(), x)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(*grads)


@EACH
def test_compiled_whole(name, options):
    torch.compiler.reset()  # else the limit on recompilations counts all gates together
    model, x, results = network(name, options), batch(requires_grad=True), []
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for forward in (model, compiled):
        torch.manual_seed(1)
        out = forward(x)
        results.append((out, torch.autograd.grad(out.square().sum(), x)[0]))
    torch.testing.assert_close(*results)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["spem", "se"])
def test_compiled_by_inductor(name):
    torch.compiler.reset()
    model, x, results = network(name, {}), batch(requires_grad=True), []
    for forward in (model, torch.compile(model, fullgraph=True)):
        out = forward(x)
        wanted = [x, *model.parameters()]
        results.append((out, torch.autograd.grad(out.square().sum(), wanted)))
    torch.testing.assert_close(*results)


@EACH
def test_exported(name, options):
    model, x = network(name, options).eval(), batch()
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    x = batch(7)
    torch.testing.assert_close(exported.module()(x), model(x))


@EACH
def test_a_map_of_another_width_is_refused(name, options):
    with pytest.raises(ValueError, match=r"built for 16 channels, the input is \(4, 8, 5, 5\)"):
        network(name, options)(torch.ones(4, 8, 5, 5))
