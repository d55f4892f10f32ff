"""Networks and tails of networks: the same weights in every form that is compared."""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import formulations
from benchmarks.bench.cases import Case, bench_network, gate_of
from spem.gates import Attention, Gate, create_gate
from spem.gates.gate import present
from spem.norm import GatedBatchNorm2d
from spem.surgery.deployment import deploy
from spem.surgery.fold import FoldedNorm


class Steps(nn.BatchNorm2d):
    """What `GatedBatchNorm2d` computes, one operation after the other, under the same names."""

    def __init__(self, norm: GatedBatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.gate = norm.gate
        self.train(norm.training)

    def forward(
        self,
        input: Tensor,  # noqa: A002 (the name of nn.BatchNorm2d)
        residual: Tensor | None = None,
        relu: bool = False,
        source: Tensor | None = None,
    ) -> Tensor:
        """Return relu(gate(BatchNorm2d(input)) + residual)."""
        if getattr(self.gate, "reads_input", False):
            return add_relu(_norm_of_input(self, input), residual, relu)
        return add_relu(_gate(self.gate, super().forward(input)), residual, relu)


class FoldedSteps(nn.Module):
    """What is left of `Steps` where the convolution normalises."""

    def __init__(self, gate: Attention | None):
        super().__init__()
        self.gate = gate

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        source: Tensor | None = None,
    ) -> Tensor:
        """Return relu(gate(x) + residual)."""
        return add_relu(_gate(self.gate, x), residual, relu)


def add_relu(out: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """Add and rectify in place, as most networks do."""
    if residual is not None:
        out += residual
    return F.relu_(out) if relu else out


def _gate(gate: nn.Module | None, x: Tensor) -> Tensor:
    if not isinstance(gate, Gate) or gate.family != "pooled":
        return x if gate is None else gate(x)
    pooled = gate.pool_map(x)
    multiplier, offset = gate.multiplier(pooled), gate.offset(pooled)
    out = x * multiplier.to(x.dtype)[:, :, None, None]
    return out if offset is None else out + offset.to(x.dtype)[:, :, None, None]


def _norm_of_input(norm: Steps, x: Tensor) -> Tensor:
    """Return IEBN: a gate of the input scales the normalised map, but not the bias."""
    gate = norm.gate
    if not isinstance(gate, Gate):
        return gate(x, norm) if gate is not None else x
    multiplier = gate.multiplier(gate.pool_map(x))[:, :, None, None]
    bias = norm.bias[:, None, None]
    unit = F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        None,
        norm.training,
        norm.momentum or 0.0,
        norm.eps,
    )
    return unit * multiplier.to(x.dtype) + bias


class Tail(nn.Module):
    """The end of a residual branch: normalisation, gate, addition and ReLU."""

    def __init__(self, channels: int, gate: str | None):
        super().__init__()
        key, options = gate_of(gate)
        made = None if key is None else create_gate(key, channels, **options)
        self.norm = GatedBatchNorm2d(channels, gate=made)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return relu(gate(norm(x)) + residual)."""
        return self.norm(x, residual, True)


def build(case: Case) -> nn.Module:
    """Build the network or the tail of a case, on the CPU, in float32.

    The same model, shape and gate give the same weights in every form. In inference the norms are
    folded, but not in float64: the truth is the network as it was trained.
    """
    gate = None if case.gate == "none" else case.gate
    tail, infers = case.group == "tail", case.group == "inference"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Tail(case.shape[1], gate) if tail else bench_network(case.subject, gate)
        _randomise(model)
    model.train(not infers).requires_grad_(not infers)
    folds = infers and case.dtype != "float64"
    if case.form == "ours":
        return _deployed(model, case) if folds else model
    return _separate(_fold_only_norms(model, case) if folds else model, case)


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Move gates and norms away from their start, where many gradients vanish."""
    for module in model.modules():
        if isinstance(module, Attention | nn.BatchNorm2d):
            for parameter in module.parameters(recurse=isinstance(module, Attention)):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        if isinstance(module, nn.BatchNorm2d):
            present(module.running_mean).normal_(0, 0.1)
            present(module.running_var).uniform_(0.8, 1.25)


def _deployed(model: nn.Module, case: Case) -> nn.Module:
    return deploy(model, fold_batchnorm=True, example=torch.zeros(1, *case.shape[1:]))


def _fold_only_norms(model: nn.Module, case: Case) -> nn.Module:
    """Fold the norms into the convolutions, as PyTorch's users do, and leave the gates alone."""
    gates = {}
    for name, norm in model.named_modules():
        if isinstance(norm, GatedBatchNorm2d) and not getattr(norm.gate, "reads_input", False):
            gates[name], norm.gate = norm.gate, None
    folded = _deployed(model, case)
    for name, gate in gates.items():
        vars(folded.get_submodule(name)).pop("gate", None)
        folded.get_submodule(name).gate = gate
    return folded


def _separate(model: nn.Module, case: Case) -> nn.Module:
    """Put separate operations in the place of norms and, but for form "torch", of gates."""
    slots = [m for m in model.modules() if isinstance(m, GatedBatchNorm2d | FoldedNorm)]
    places = [(m, p) for m in model.modules() for p in ("gate", "branch_gate", "input_gate")]
    places = [(m, p) for m, p in places if isinstance(getattr(m, p, None), Attention)]
    if case.form != "torch":
        given = [getattr(*place) for place in places]
        for place, gate in zip(places, _rewritten(case, given), strict=True):
            setattr(*place, gate)
    names = {module: name for name, module in model.named_modules()}
    for slot in slots:
        steps = Steps(slot) if isinstance(slot, GatedBatchNorm2d) else FoldedSteps(slot.gate)
        parent, _, child = names[slot].rpartition(".")
        setattr(model.get_submodule(parent), child, steps)
    return model.train(case.group != "inference")


def _rewritten(case: Case, given: list[Any]) -> list[Any]:
    if case.form == "timm":
        return [_timm_gate(case.gate, gate) for gate in given]
    return formulations.rewrite(case.gate, given)


class _Foreign(Attention):
    """A module of another library in the place of a gate."""

    def __init__(self, channels: int, module: nn.Module):
        super().__init__(channels)
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def _timm_gate(name: str, gate: Any) -> Attention:
    layers = importlib.import_module("timm.layers")
    if name == "eca":
        module = layers.EcaModule(gate.channels)
        module.conv.weight.data = gate.conv.weight.data.clone()
    else:
        module = layers.SEModule(gate.channels, rd_channels=gate.fc1.out_features)
        for own, other in ((gate.fc1, module.fc1), (gate.fc2, module.fc2)):
            other.weight.data = own.weight.data[..., None, None].clone()
            other.bias.data = own.bias.data.clone()
    return _Foreign(gate.channels, module)
