"""The base class of all gates, `Attention`, and what is collected over the gates of a model."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from spem._checks import check_choice, check_module, check_whole, sizes_are_known
from spem._fx import FxLeaf
from spem.functional import check_map, check_positions
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


class Attention(FxLeaf):
    """The base class of all gates.

    A gate that reads the feature map itself derives from it directly: it defines
    `forward(x) -> y`, both (N, C, H, W), and checks x by `check_map`. The parameters of a gate stay
    in float32 (or wider) in a model of half precision.

    Args:
        channels: C, the number of channels of the feature maps it gates, at most 16,384.
        init: "paper", the authors' start, or "identity", a start whose multipliers are exactly 1.

    Attributes:
        gain: buffer, a constant factor of the multipliers: 1, or what makes the start of
            `init="identity"` exactly 1.

    Raises:
        ValueError: channels is not a whole number from 1 to 16,384, or init is unknown.
    """

    gain: Tensor
    # How it is carried out. "pooled": a multiplier, and perhaps an offset, of each channel from its
    # pooled values; "quadratic": σ of a quadratic function of each value, with coefficients from
    # the pooled values; "strips": from the means of rows and columns; "map": in passes of its own.
    family = "map"
    # Names of parameters that the authors train without weight decay.
    no_weight_decay: tuple[str, ...] = ()
    # Where `create_model` puts the gate by default, see `spem.models.placement`.
    placement = "residual"
    # Whether `create_model` builds a norm for it where it would follow a convolution.
    needs_norm = False
    # Whether `forward` takes the block's input as a second argument.
    needs_source = False
    # Whether the gates of a stage share a unit that the first one owns: see `Place.leader`. Such a
    # gate hands a state on to the next, so none of them can be replaced by a constant.
    shares_unit = False
    # Name and options of the gate that `constant_part` leaves, for the `config` of a network.
    rest_options: tuple[str, dict[str, Any]] | None = None
    # Options that earlier versions had: configurations that name them load, and they do nothing.
    retired_options: tuple[str, ...] = ()

    def __init__(self, channels: int, init: str = "paper"):
        super().__init__()
        check_whole("channels", channels, most=2**14)
        check_choice("init", init, ("paper", "identity"))
        self.channels = channels
        self.register_buffer("gain", torch.ones(()))
        self._multiplier_hooks: dict[int, Callable[[Attention, Tensor], object]] = OrderedDict()

    def start_at_identity(self, gain: float, *layers: nn.Module) -> None:
        """Make the multipliers exactly 1 at the start.

        Args:
            gain: 1 / the multiplier of layers that give 0.
            layers: the last ones before the sigmoid, whose weights and biases become 0.
        """
        self.gain.fill_(gain)
        for parameter in (p for layer in layers for p in layer.parameters()):
            nn.init.zeros_(parameter)
        keep_start(*layers)

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
        """Raise ValueError unless x is (N, C, H, W) with the channels and device of this gate."""
        check_map("x", x)
        check_positions(x)
        other = sizes_are_known(x) and x.shape[1] != self.channels
        if other or x.device != self.gain.device:
            raise ValueError(
                f"the gate was built for {self.channels} channels, the input is {tuple(x.shape)} on"
                f" {x.device}, must be (N, {self.channels}, H, W) on {self.gain.device}"
            )
        if (x.dtype is torch.float64) != (self.gain.dtype is torch.float64):
            raise ValueError(
                f"x is {x.dtype}, the gate {self.gain.dtype}: give x.to({self.gain.dtype}), or"
                f" gate.to({x.dtype}) first"
            )

    def extra_repr(self) -> str:
        """Show the channels."""
        return str(self.channels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `model.half()` comes through here: multipliers are float32, as all statistics are.
        return super()._apply(lambda t: upcast(fn(t)) if t.is_floating_point() else fn(t), recurse)


def keep_start(*layers: nn.Module) -> None:
    """Have networks that draw all their convolutions leave these layers of a gate as they are."""
    for layer in layers:
        vars(layer).update(keeps_start=True)


class NoIdentityError(ValueError):
    """A gate was asked for a start at the identity that it does not have."""


def refuse_identity(name: str, init: str, reason: str) -> None:
    """Raise NoIdentityError where a gate without a start at the identity is asked for one."""
    if init == "identity":
        raise NoIdentityError(
            f"{name} has no start at the identity, for {reason}: give init='paper'"
        )


def multiply(x: Tensor, multiplier: Tensor) -> Tensor:
    """Return x · multiplier, for multipliers that differ between positions.

    Args:
        x: (N, C, H, W).
        multiplier: in a shape that expands to that of x, float32 or wider.

    Returns:
        (N, C, H, W) in the dtype of x.
    """
    if x.dtype is torch.float16:
        # The gradient of the multiplier is a sum over channels, beyond the range of float16.
        return (upcast(x) * multiplier).to(x.dtype)
    return x * multiplier.to(x.dtype)


def auxiliary_loss(model: nn.Module) -> Tensor:
    """Sum the auxiliary losses of all gates of a model, weights included.

    Returns:
        A scalar on the model's device, 0 where no gate has such a loss.
    """
    check_module(model)
    gates = (module for module in model.modules() if isinstance(module, Attention))
    terms = [term for gate in gates if (term := gate.auxiliary_loss()) is not None]
    if terms:
        return torch.stack(terms).sum()
    return torch.zeros((), device=next((p.device for p in model.parameters()), None))


def refuse_lost_gate(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Refuse to register a gate on a SyncBatchNorm that does not apply it (a registration hook).

    `SyncBatchNorm.convert_sync_batchnorm` puts a SyncBatchNorm in the place of any BatchNorm and
    hands it the children, without a call of the gate. `attach` to a SyncBatchNorm adds a forward
    hook first.

    Raises:
        RuntimeError: the gate would be dropped.
    """
    synchronised = isinstance(module, nn.SyncBatchNorm) and not module._forward_hooks
    if synchronised and isinstance(child, Attention):
        raise RuntimeError(
            "converting this norm would drop its gate: convert the plain network and attach gates"
            " after, or set `sync = True` on its gated norms (recipe key sync_batchnorm)"
        )


register_module_module_registration_hook(refuse_lost_gate)
