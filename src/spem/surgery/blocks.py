"""Residual blocks of torchvision and timm whose gated norm also adds the residual and rectifies.

The blocks do both behind their last norm, in passes of their own. Here the norm does it in the pass
that recalibrates (`GatedBatchNorm2d`): the same function, rounded once.
"""

from functools import cache
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.fx import Proxy

from spem.gates.gate import has_hooks
from spem.norm import GatedBatchNorm2d


class _Form(NamedTuple):
    """What a block's forward pass is known to be.

    Attributes:
        steps: the children called before the last norm, in order.
        norm: the last norm.
        rest: what may stand between the norm and the addition, absent where it does nothing.
        activation: behind the addition.
    """

    steps: tuple[str, ...]
    norm: str
    rest: tuple[str, ...]
    activation: str


_TORCHVISION, _TIMM = "torchvision.models.resnet", "timm.models.resnet"
_FORMS = {
    (_TORCHVISION, "BasicBlock"): _Form(("conv1", "bn1", "relu", "conv2"), "bn2", (), "relu"),
    (_TORCHVISION, "Bottleneck"): _Form(
        ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3"), "bn3", (), "relu"
    ),
    (_TIMM, "BasicBlock"): _Form(
        ("conv1", "bn1", "drop_block", "act1", "aa", "conv2"), "bn2", ("se", "drop_path"), "act2"
    ),
    (_TIMM, "Bottleneck"): _Form(
        ("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3"),
        "bn3",
        ("se", "drop_path"),
        "act3",
    ),
}


class _FusedBlock(nn.Module):
    """The forward pass of a known block, with addition and ReLU in its last norm."""

    form: _Form
    original: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; the block's own forward pass runs where more must be seen."""
        form = self.form
        norm, activation = getattr(self, form.norm), getattr(self, form.activation)
        # Tracers of torch.fx name the block's own steps; hooks see what they would see without us.
        if (
            isinstance(x, Proxy)
            or not (type(norm) is GatedBatchNorm2d and norm.gate is not None)
            or type(activation) is not nn.ReLU
            or any(_acts(getattr(self, name)) for name in form.rest)
            or has_hooks(norm)
            or has_hooks(activation)
        ):
            return cast(Any, self.original).forward(self, x)
        out = x
        for name in form.steps:
            out = getattr(self, name)(out)
        residual = x if self.downsample is None else cast(Any, self.downsample)(x)
        return norm(out, residual, True)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy the block by the class that its library knows."""
        return _restore, (self.original,), self.__getstate__()


def fuse_blocks(model: nn.Module) -> None:
    """Let the gated last norms of known blocks add and rectify; weights and keys stay."""
    for block in model.modules():
        form = _find_form(type(block))
        norm = None if form is None else getattr(block, form.norm)
        if isinstance(norm, GatedBatchNorm2d) and norm.gate is not None:
            block.__class__ = _fused_class(type(block))


def unfuse_blocks(model: nn.Module) -> None:
    """Give blocks whose last norm has no gate their own class back."""
    for block in model.modules():
        if isinstance(block, _FusedBlock):
            norm = getattr(block, block.form.norm)
            if getattr(norm, "gate", None) is None:
                cast(nn.Module, block).__class__ = block.original


def _find_form(block: type[nn.Module]) -> _Form | None:
    """Return the form of a class of blocks, if its forward pass uses just what the form says."""
    form = _FORMS.get((block.__module__, block.__qualname__))
    if form is None or issubclass(block, _FusedBlock):
        return None
    expected = {*form.steps, form.norm, *form.rest, "downsample", form.activation}
    return form if {*block.forward.__code__.co_names} == expected else None


@cache
def _fused_class(block: type[nn.Module]) -> type[nn.Module]:
    names = {"__module__": block.__module__, "__qualname__": block.__qualname__}
    own = {"form": _find_form(block), "original": block, "__doc__": block.__doc__}
    return type(block.__name__, (_FusedBlock, block), names | own)


def _restore(original: type[nn.Module]) -> nn.Module:
    """Return a block without contents, which unpickling fills."""
    fused = _fused_class(original) if _find_form(original) else original
    return fused.__new__(fused)


def _acts(module: nn.Module | None) -> bool:
    return module is not None and type(module) is not nn.Identity
