"""The bases of all gates: what every one has, and the pipeline of those that read pooled values."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spem import kernels
from spem.functional import (
    STATISTICS,
    Pooled,
    check_map,
    check_positions,
    check_residual,
    pool,
    recalibrate,
)
from spem.gates.checks import check_choice, check_whole
from spem.gates.compiled import gate_excitation
from spem.kernels import fused
from spem.kernels.reference import upcast


class Place(NamedTuple):
    """What a network knows of a place where it puts a gate.

    Attributes:
        map_size: side of the feature maps for images of 32×32; None where it is unknown.
        source_channels: channels of the block's input; None where the gate is not given it.
        leader: the first gate of this width in the stage; None for that gate itself.
    """

    map_size: int | None = None
    source_channels: int | None = None
    leader: "Attention | None" = None


class Attention(nn.Module):
    """What every gate has; a gate that needs the map itself derives from it directly.

    Such a gate defines `forward(x) -> y`, both (N, C, H, W), and checks x by `check_map`. Its
    parameters stay in float32 (or wider) in a model of half precision.

    Args:
        channels: C, the number of channels of the maps it gates.
        init: "paper", the authors' start, or "identity", a start whose multipliers are exactly 1.

    Attributes:
        gain: buffer, a constant factor of the multipliers: 1, or what makes the start of
            `init="identity"` exactly 1.

    Raises:
        ValueError: channels is not a whole number of at least 1, or init is unknown.
    """

    gain: Tensor
    # Names of parameters that the authors train without weight decay.
    no_weight_decay: tuple[str, ...] = ()
    # Where `create_model` puts the gate by default, see `spem.models.placement`.
    placement = "residual"
    # Whether it wants a norm of its own where it would follow a convolution.
    needs_norm = False
    # Whether `forward` takes the block's input beside the map.
    needs_source = False
    # Whether the gates of a stage share a unit that the first one owns: see `Place.leader`. Such a
    # gate hands a state on to the next, so none of them can be replaced by a constant.
    shares_unit = False
    # Options that earlier versions had: configurations that name them load, and they do nothing.
    retired_options: tuple[str, ...] = ()

    def __init__(self, channels: int, init: str = "paper"):
        super().__init__()
        check_whole("channels", channels)
        check_choice("init", init, ("paper", "identity"))
        self.channels = channels
        self.register_buffer("gain", torch.ones(()))
        self._multiplier_hooks: dict[int, Callable[[Attention, Tensor], object]] = OrderedDict()

    @classmethod
    def options_at(cls, place: Place, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options for a gate at a place of a network, from those that the user gave.

        A class that needs to know something of its place overrides this.
        """
        return dict(options)

    def reset(self) -> None:
        """Forget the state that gates with `shares_unit` hand on to the next."""

    def constant_part(self) -> "tuple[Tensor, Attention | None] | None":
        """Return the constant factor of the multipliers, (C,), and the gate that gives the rest.

        `spem.deploy` folds the factor into the layer before the gate, which the other gate then
        replaces, or nothing if that is None. None without a constant factor.
        """
        return None

    @classmethod
    def options_of_rest(cls, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """Return the name and options of the gate that gives the rest beside `constant_part`.

        Args:
            options: those of this gate.
        """
        return None

    def register_multiplier_hook(
        self, hook: Callable[["Attention", Tensor], object]
    ) -> RemovableHandle:
        """Have hook(gate, multiplier) called whenever the gate has computed its multipliers.

        Gates whose multipliers differ between the positions of a channel do not call it.

        Args:
            hook: receives the gate and its multipliers, (N, C), or (1, C) for all images alike.

        Returns:
            A handle, whose `remove()` takes the hook away.
        """
        handle = RemovableHandle(self._multiplier_hooks)
        self._multiplier_hooks[handle.id] = hook
        return handle

    def report_multiplier(self, multiplier: Tensor) -> Tensor:
        """Call the multiplier hooks, and return the multipliers, (N, C), as they are."""
        for hook in self._multiplier_hooks.values():
            hook(self, multiplier)
        return multiplier

    def auxiliary_loss(self) -> Tensor | None:
        """Return this gate's term of the training loss, weight included; None without one."""
        return None

    def check_map(self, x: Tensor) -> None:
        """Raise ValueError unless x is (N, C, H, W) with the channels of this gate."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"the gate was built for {self.channels} channels, the input is {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """Show the channels."""
        return str(self.channels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.half()` comes through here: multipliers are float32, as all statistics are.
        return super()._apply(lambda t: upcast(fn(t)) if t.is_floating_point() else fn(t), recurse)


class Gate(Attention):
    """Channel attention whose multipliers follow from the pooled values of a map.

    A subclass sets `statistics` to the pooled values it reads (all, unless it says less) and
    defines `excite`; the base pools and recalibrates, and `GatedBatchNorm2d` does both in the
    passes of the normalisation.

    Args:
        channels: C, the number of channels of the maps it gates.
        init: see `Attention`.
    """

    statistics: tuple[str, ...] = STATISTICS
    # Whether it reads `statistics` alone, which the norm before it pools in its own pass. A gate
    # that pools in another way says False and defines `pool_map`.
    fuses_with_norm = True
    # Whether it reads the pooled values of the input of its norm, instead of the output's.
    reads_input = False
    # Whether the multipliers are a function of the pooled values, parameters, buffers and plain
    # options alone, so that one kernel serves all gates of a kind. Not inherited: each class says.
    traceable = False
    # Whether the gain is known to be 1, so that `multiplier` need not multiply by it.
    unit_gain = False

    def pool_map(self, x: Tensor) -> Pooled:
        """Return the pooled values of x, (N, C, H, W), that `excite` reads."""
        return pool(x, self.statistics)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multiplier of every channel, (N, C), or (1, C) for all images alike."""
        raise NotImplementedError(f"{type(self).__name__} does not define excite")

    def multiplier(self, pooled: Pooled) -> Tensor:
        """Return gain · excite(pooled), (N, C), in float32 or wider, under autocast too.

        Raises:
            ValueError: `excite` returned another shape.
        """
        with torch.autocast(self.gain.device.type, enabled=False):
            excited = self.excite(pooled)
            multiplier = excited if self.unit_gain else self.gain * excited
        # The channels are a symbol where a kernel for any number of them is traced.
        found = multiplier.shape[-1]
        if multiplier.dim() != 2 or (isinstance(found, int) and found != self.channels):
            raise ValueError(
                f"excite of {type(self).__name__} returned {tuple(multiplier.shape)}, "
                f"must be (N, {self.channels})"
            )
        return self.report_multiplier(multiplier)

    def deployed(self) -> "Gate":
        """Return what serves in this gate's place in inference: the same multiplier, fewer steps.

        `spem.deploy` calls it on a copy of a model: the gate may return itself, changed. A gate
        whose constants can be computed beforehand returns another one.
        """
        self.unit_gain = bool((self.gain == 1).all())
        return self

    def coefficients(
        self, pooled: Pooled, scale: Tensor, shift: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a and b, (N, C), such that the gated norm of x is a·x + b.

        Args:
            pooled: the pooled values of the norm's input x.
            scale: (C,), the norm is scale·x + shift.
            shift: (C,).
            bias: the norm's own bias β, (C,), which shift contains.
        """
        multiplier = self.multiplier(pooled.affine(scale, shift))
        return multiplier * scale, multiplier * shift

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        *,
        overwrite: bool = False,
    ) -> Tensor:
        """Return relu(multiplier · x + residual).

        Args:
            x: (N, C, H, W).
            residual: (N, C, H, W), added after the recalibration.
            relu: whether negative results become 0.
            overwrite: whether the result may take the memory of x where no gradient is asked for.

        Raises:
            ValueError: x has other channels than the gate was built for.
        """
        self.check_map(x)
        check_map("x", x)
        check_positions(x)
        if residual is not None:
            check_residual(x, residual)
        if not self.fuses_with_norm:
            multiplier = self.multiplier(self.pool_map(x)).expand(x.shape[:2])
            return recalibrate(x, multiplier, None, residual, relu)
        backend = kernels.chosen_for_both(x)
        if backend.compiles_excitations() and (excitation := gate_excitation(self)):
            return fused.apply(backend, excitation, x, residual, relu, overwrite)
        pooled_map = backend.pool(x, self.statistics)
        pooled = Pooled.of(pooled_map.values, x.shape[2] * x.shape[3])
        multiplier = self.multiplier(pooled).expand(x.shape[:2])
        return pooled_map.recalibrate(multiplier, None, residual, relu, overwrite)


def gated(
    gate: Attention,
    x: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    source: Tensor | None = None,
) -> Tensor:
    """Return relu(gate(x) + residual) for any gate.

    Args:
        gate: a `Gate`, which does all in one pass, or a gate that needs the map.
        x: (N, C, H, W).
        residual: (N, C, H, W), added after the gate.
        relu: whether negative results become 0.
        source: the block's input, for gates that read it.
    """
    if isinstance(gate, Gate):
        return gate(x, residual, relu)
    out = gate(x, source) if gate.needs_source else gate(x)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def auxiliary_loss(model: nn.Module) -> Tensor:
    """Sum the auxiliary losses of all gates of a model, weights included.

    Returns:
        A scalar on the model's device, 0 where no gate has such a loss.
    """
    terms = [module.auxiliary_loss() for module in model.modules() if isinstance(module, Attention)]
    present_terms = [term for term in terms if term is not None]
    if present_terms:
        return torch.stack(present_terms).sum()
    return torch.zeros((), device=next((p.device for p in model.parameters()), None))


def parameter_groups(modules: Sequence[nn.Module]) -> list[tuple[list[nn.Parameter], dict]]:
    """Return the parameters of modules in at most two groups with their optimizer settings.

    The first group has no settings of its own; the second holds what the authors of a gate train
    without weight decay (`Attention.no_weight_decay`).
    """
    decayed, no_weight_decay, exempt = [], [], set()
    for gate in (m for module in modules for m in module.modules() if isinstance(m, Attention)):
        exempt |= {id(gate.get_parameter(name)) for name in gate.no_weight_decay}
    unique = {id(p): p for module in modules for p in module.parameters()}
    for key, parameter in unique.items():
        (no_weight_decay if key in exempt else decayed).append(parameter)
    groups = [(decayed, {}), (no_weight_decay, {"weight_decay": 0.0})]
    return [(parameters, settings) for parameters, settings in groups if parameters]


def present(statistic: Tensor | None) -> Tensor:
    """Return a pooled statistic that a gate reads, or raise ValueError where it was left out."""
    if statistic is None:
        raise ValueError("the pooled values lack a statistic that this gate reads")
    return statistic


def hidden_width(channels: int, reduction: int, *, clamp: bool) -> int:
    """Return the width of an excitation's hidden layer.

    Args:
        channels: C.
        reduction: r, a whole number of at least 1.
        clamp: True for max(1, round(C / r)), False for C // r, which must not be 0.

    Raises:
        ValueError: the reduction is not allowed, or leaves no hidden unit.
    """
    check_whole("reduction", reduction)
    if clamp:
        return max(1, round(channels / reduction))
    if channels < reduction:
        raise ValueError(
            f"reduction is {reduction}, must be at most {channels}, the number of channels: "
            "a larger one leaves no hidden unit"
        )
    return channels // reduction


def start_at_zero(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    """Set the weight of a layer, and its bias where it has one, to 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
