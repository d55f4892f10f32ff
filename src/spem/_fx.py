"""Modules that `torch.fx` takes as one step of a network, as it takes PyTorch's own layers."""

from typing import Any

from torch import nn
from torch.fx import Proxy


class FxLeaf(nn.Module):
    """A module that every tracer of `torch.fx` records as one call, a leaf of the network.

    What it computes depends on sizes and on the machine, of which stand-ins (`Proxy`) know nothing.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, or record the call where an argument is a stand-in."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Proxy):
                return _record(value.tracer, self, args, kwargs)
        return super().__call__(*args, **kwargs)

    def __prepare_scriptable__(self) -> "FxLeaf":
        """Refuse `torch.jit.script`, which asks here first: it compiles a part of Python alone."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: write torch.jit.trace(model, "
            "images) or torch.export.export, which are right at other sizes, too"
        )


def _record(tracer: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    def record(*args: Any, **kwargs: Any) -> Any:
        return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)

    # By `call_module`, in which tracers note which module runs.
    return tracer.call_module(module, record, args, kwargs)
