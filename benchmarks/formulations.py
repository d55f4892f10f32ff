"""The gates as users write them today: pooling, excitation and scaling as separate operations.

`benchmarks.bench` measures these beside the library, as the column "today". Every class takes over
the parameters of a gate of the library, under the same names, so that both compute the same
function. It is the common way of writing each published method in PyTorch, not any author's code.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spem import gates
from spem.gates import Attention


def pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, maximum and minimum of each map, (N, C)."""
    mean = F.adaptive_avg_pool2d(x, 1)[..., 0, 0]
    var = x.flatten(2).var(-1, unbiased=False)
    largest = F.adaptive_max_pool2d(x, 1)[..., 0, 0]
    smallest = -F.adaptive_max_pool2d(-x, 1)[..., 0, 0]
    return mean, var, largest, smallest


def recalibrate(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
    """Compute relu(scale * x + shift + residual)."""
    out = x * scale.to(x.dtype)[:, :, None, None].expand_as(x)
    out = out + shift.to(x.dtype)[:, :, None, None]
    out += residual
    return F.relu_(out)


class Today(Attention):
    """Scales a map by `weights` of it, (N, C, 1, 1)."""

    if TYPE_CHECKING:  # the names of what it takes over

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, gate: Attention):
        super().__init__(gate.channels)
        for name, parameter in gate.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, module in gate.named_children():
            self.add_module(name, module)

    def weights(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x).to(x.dtype)
        return x * weights.view(len(x), -1, 1, 1).expand_as(x)

    def column(self, parameter: Tensor) -> Tensor:
        return parameter.view(1, -1, 1, 1)


def average(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


class SPEM(Today):
    def __init__(self, gate: gates.SPEM):
        super().__init__(gate)
        self.alpha = gate.alpha

    def weights(self, x: Tensor) -> Tensor:
        largest, smallest = F.adaptive_max_pool2d(x, 1), -F.adaptive_max_pool2d(-x, 1)
        first, second = self.pool_weight.square() / self.pool_weight.square().sum()
        w1, b1 = self.column(self.excitation_scale), self.column(self.excitation_shift)
        w2, b2 = self.column(self.reweight_scale), self.column(self.reweight_shift)
        mixed = first * largest + second * smallest
        excited = torch.sigmoid((w2 * mixed + b2) * w1 + b1)
        return excited * torch.sigmoid((w2 * largest + b2) + (w2 * smallest + b2))

    def auxiliary_loss(self) -> Tensor | None:
        return None if self.alpha is None else self.alpha * self.pool_weight.square().sum()


class SE(Today):
    def logits(self, flat: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(flat), inplace=True))

    def weights(self, x: Tensor) -> Tensor:
        return self.logits(average(x).flatten(1)).sigmoid()


class ECA(Today):
    def weights(self, x: Tensor) -> Tensor:
        y = average(x).squeeze(-1).transpose(-1, -2)
        return self.conv(y).transpose(-1, -2).unsqueeze(-1).sigmoid()


class SRM(Today):
    def __init__(self, gate: gates.SRM):
        super().__init__(gate)
        self.eps = gate.eps

    def weights(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        style = torch.stack([flat.mean(-1), (flat.var(-1) + self.eps).sqrt()], -1)
        return self.bn((style * self.style_weight).sum(-1)).sigmoid()


class GCT(Today):
    def __init__(self, gate: gates.GCT):
        super().__init__(gate)
        self.eps = gate.eps

    def weights(self, x: Tensor) -> Tensor:
        alpha, gamma, beta = map(self.column, (self.alpha, self.gamma, self.beta))
        embedding = (x.pow(2).sum((2, 3), keepdim=True) + self.eps).pow(0.5) * alpha
        norm = gamma / (embedding.pow(2).mean(1, keepdim=True) + self.eps).pow(0.5)
        return 1 + torch.tanh(embedding * norm + beta)


class IE(Today):
    def weights(self, x: Tensor) -> Tensor:
        return torch.sigmoid(average(x) * self.column(self.scale) + self.column(self.shift))


class IEBN(IE):
    """Takes the norm, too: its scale is multiplied, its bias is not."""

    reads_input = True

    def forward(self, x: Tensor, norm: nn.BatchNorm2d | None = None) -> Tensor:
        if norm is None:
            return super().forward(x)
        a = torch.sigmoid(average(x) * self.column(self.scale) + self.column(self.shift))
        moments = norm.running_mean, norm.running_var
        unit = F.batch_norm(
            x, *moments, training=norm.training, momentum=norm.momentum or 0.0, eps=norm.eps
        )
        scale = (self.column(norm.weight) * a).to(x.dtype)
        return unit * scale + self.column(norm.bias).to(x.dtype)


class SEM(SE):
    def weights(self, x: Tensor) -> Tensor:
        pooled = average(x)
        flat = pooled.flatten(1)
        along = self.conv(pooled.squeeze(-1).transpose(-1, -2)).squeeze(1)
        own = flat * self.scale + self.shift
        switch = self.switch_fc(flat).sigmoid()
        first = torch.sigmoid(switch[:, 0:1] * self.logits(flat))
        second = torch.sigmoid(switch[:, 1:2] * along)
        return first * second * torch.sigmoid(switch[:, 2:3] * own)


class LSAS(SE):
    def weights(self, x: Tensor) -> Tensor:
        logits = self.logits(average(x).flatten(1))
        product = logits.sigmoid()
        for scale, shift in zip(self.sub_scale, self.sub_shift, strict=True):
            logits = logits * scale + shift
            product = product * logits.sigmoid()
        return product


class CBAM(Today):
    """The channel half alone."""

    def weights(self, x: Tensor) -> Tensor:
        pooled = average(x).flatten(1), F.adaptive_max_pool2d(x, 1).flatten(1)
        first, second = (self.fc2(F.relu(self.fc1(value), inplace=True)) for value in pooled)
        return (first + second).sigmoid()


class DIANet(Today):
    """One step; the first gate of a stage owns the unit and keeps the state for the others."""

    def __init__(self, gate: gates.DIANet, leader: "DIANet | None" = None):
        super().__init__(gate)
        self.leader = (leader,) if leader else ()
        self.state: tuple[Tensor, Tensor] | None = None

    def weights(self, x: Tensor) -> Tensor:
        if self.leader:
            return self.leader[0].step(average(x).flatten(1))
        self.state = None
        return self.step(average(x).flatten(1))

    def step(self, pooled: Tensor) -> Tensor:
        hidden, cell = self.state or (torch.zeros_like(pooled), torch.zeros_like(pooled))
        i, f, g, o = (self.w_ih(pooled) + self.w_hh(hidden)).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        self.state = o.sigmoid() * cell.sigmoid(), cell
        return self.state[0]


_CLASSES = {
    "spem": SPEM,
    "se": SE,
    "eca": ECA,
    "srm": SRM,
    "gct": GCT,
    "ie": IE,
    "sem": SEM,
    "lsas": LSAS,
    "cbam": CBAM,
    "iebn": IEBN,
}


def rewrite(name: str, given: list[Any]) -> list[Attention]:
    """Return the gates of one network, in order, as users write them today.

    Args:
        name: the key of the gate in `spem.GATES`.
        given: gates of the library, whose parameters the new ones take over.
    """
    if name != "dianet":
        return [_CLASSES[name](gate) for gate in given]
    written, leader = [], None
    for gate in given:
        leader = leader if gate.follows else None
        written.append(DIANet(gate, leader))
        leader = leader or written[-1]
    return written
