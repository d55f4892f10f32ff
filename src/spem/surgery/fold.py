"""Fold norms into the convolutions before them, and let gates compute their constants once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from spem._fx import FxLeaf
from spem.functional import STATISTICS
from spem.gates import Attention, Gate
from spem.gates.gate import gated, present
from spem.norm import GatedBatchNorm2d


class FoldedNorm(FxLeaf):
    """The gate, addition and ReLU of a `GatedBatchNorm2d` that was folded into its convolution.

    Args:
        gate: of the norm, or None.
    """

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
        """Return relu(gate(x) + residual); the arguments are those of `GatedBatchNorm2d`."""
        # A convolution keeps its input for the backward pass, not its output x, which nothing else
        # reads: x may be overwritten.
        if isinstance(self.gate, Gate):
            return self.gate(x, residual, relu, overwrite=True)
        return gated(self.gate, x, residual, relu, source)


def fold_batchnorms(model: nn.Module, example: Tensor) -> None:
    """Fold every norm into the convolution that alone feeds it, in place, in evaluation mode.

    Left as they are: norms behind anything else, also behind convolutions of another forward pass
    and of pruned or parametrised weights; norms of a convolution whose output is read elsewhere,
    too; and norms whose gate reads their input.

    Args:
        model: in evaluation mode.
        example: an input of the model, (N, C, H, W); it is run once to see what feeds what.
    """
    pairs = _find_pairs(model, example)
    names = {module: name for name, module in model.named_modules()}
    for norm, conv in pairs.items():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            present(norm.running_mean),
            present(norm.running_var),
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, child = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), child, FoldedNorm(norm.gate).eval())


def fold_gates(model: nn.Module) -> None:
    """Replace every gate that reads pooled values, in place, by its `Gate.deployed`.

    Args:
        model: in evaluation mode.
    """
    replaced: dict[Gate, Gate] = {}
    for module in [m for m in model.modules() if not isinstance(m, Gate)]:
        for name, gate in list(module.named_children()):
            if not isinstance(gate, Gate):
                continue
            if gate not in replaced:
                replaced[gate] = gate.deployed()
            new = replaced[gate]
            setattr(module, name, new)
            # A negative scale of a norm makes the maximum of its input the minimum of its output,
            # so that a gate which reads one of them there needs both.
            if isinstance(module, GatedBatchNorm2d) and {"max", "min"} & set(new.statistics):
                wanted = {*new.statistics, "max", "min"}
                new.statistics = tuple(name for name in STATISTICS if name in wanted)


def is_plain_conv(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a convolution by its weights, not by something computed of them.

    Such as standardised weights, which a factor does not change. One of ours gates its input only.
    """
    if not isinstance(module, nn.Conv2d):
        return False
    own = type(module)
    same = own.forward is nn.Conv2d.forward and own._conv_forward is nn.Conv2d._conv_forward
    return same or hasattr(own, "gate_attribute")


def has_own_weights(module: nn.Module) -> bool:
    """Return whether weight and bias are a module's own, not pruned and not parametrised."""
    return {"weight", "bias"} <= module._parameters.keys()


def _find_pairs(model: nn.Module, example: Tensor) -> dict[GatedBatchNorm2d, nn.Conv2d]:
    """Return the convolution that alone feeds each norm, found by running the model once."""
    reads = _Reads()
    with torch.no_grad(), ExitStack() as hooks, reads:
        for handle in (handle for module in model.modules() for handle in reads.watch(module)):
            hooks.enter_context(handle)
        reads._count(model(example))  # what the model returns is read by its caller
    uses = reads.uses
    return {
        norm: conv
        for norm, (conv, output) in reads.pairs.items()
        if uses[id(output)] == 1 and reads.calls[conv] == reads.calls[norm] == 1
    }


class _Reads(TorchFunctionMode):
    """Counts how often the output of each convolution is read; a norm that reads it counts once."""

    def __init__(self):
        # The outputs of convolutions by their ids, kept alive so that those stay unique.
        self.outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
        self.uses: Counter[int] = Counter()
        self.calls: Counter[nn.Module] = Counter()
        self.pairs: dict[GatedBatchNorm2d, tuple[nn.Conv2d, Tensor]] = {}
        self._inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Attributes such as x.shape do not read the feature map.
        if not self._inside and getattr(func, "__name__", "") != "__get__":
            self._count((args, kwargs))
        return func(*args, **(kwargs or {}))

    def _count(self, values: object) -> None:
        self.uses.update(id(value) for value in tree_leaves(values) if id(value) in self.outputs)

    def watch(self, module: nn.Module) -> Iterator[RemovableHandle]:
        """Watch a module that is a convolution, or a norm that can be folded."""
        if is_plain_conv(module) and has_own_weights(module) and not module._forward_hooks:
            yield module.register_forward_hook(self._note_output)
        elif isinstance(module, GatedBatchNorm2d) and _can_fold(module):
            yield module.register_forward_pre_hook(self._enter_norm, with_kwargs=True)
            yield module.register_forward_hook(self._leave_norm)

    def _note_output(self, conv: nn.Conv2d, args: Any, output: Tensor) -> None:
        self.calls[conv] += 1
        self.outputs[id(output)] = conv, output

    def _enter_norm(self, norm: GatedBatchNorm2d, args: Any, kwargs: Any) -> None:
        self.calls[norm] += 1
        if id(args[0]) in self.outputs:
            self.pairs[norm] = self.outputs[id(args[0])]
        self._count((args, kwargs))
        self._inside += 1

    def _leave_norm(self, norm: nn.Module, args: Any, output: Tensor) -> None:
        self._inside -= 1


def _can_fold(norm: GatedBatchNorm2d) -> bool:
    reads_input = isinstance(norm.gate, Gate) and norm.gate.reads_input
    return norm.running_mean is not None and not reads_input
