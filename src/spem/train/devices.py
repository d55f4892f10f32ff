"""The machine: its devices, their precisions, and settings of the process."""

import ctypes
import gc
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from torch import nn

from spem._extras import needs_extra
from spem.norm import GatedBatchNorm2d
from spem.train.recipe import Recipe

with needs_extra("train"):
    from lightning_fabric import Fabric

_PRECISIONS = {
    "cpu": ("32", "bf16-mixed"),
    "cuda": ("32", "bf16-mixed", "16-mixed"),
    "mps": ("32",),
}


def create_fabric(recipe: Recipe) -> Fabric:
    """Return the Fabric of a recipe, not launched yet.

    Under torchrun `devices` counts the processes on all machines.

    Raises:
        ValueError: this machine lacks the devices, the precision or what `cuda_graph` needs.
    """
    elastic = torch.distributed.is_torchelastic_launched()
    machines = int(os.environ["GROUP_WORLD_SIZE"]) if elastic else 1
    if elastic and int(os.environ["WORLD_SIZE"]) != recipe.devices:
        raise ValueError(
            f"devices is {recipe.devices}, must be {os.environ['WORLD_SIZE']}, the processes that"
            " torchrun has started"
        )
    present = {
        "cuda": torch.cuda.device_count() * machines,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": recipe.devices,
    }
    device = recipe.device
    if device == "auto":
        device = next(name for name, number in present.items() if number)
    if present[device] < recipe.devices:
        raise ValueError(f"{recipe.devices} x {device!r} was asked for, here is {present[device]}")
    if recipe.cuda_graph and device != "cuda":
        raise ValueError(f"cuda_graph needs a CUDA device, and this run would use {device!r}")
    precisions = list(_PRECISIONS[device])
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        precisions.remove("bf16-mixed")
    if recipe.precision not in precisions:
        raise ValueError(
            f"precision {recipe.precision!r} is not possible on {device!r}, which has"
            f" {', '.join(precisions)}"
        )
    strategy = "auto"
    if recipe.devices > 1:
        strategy = "ddp" if elastic else "ddp_spawn"
    return Fabric(
        accelerator=device,
        devices=recipe.devices // machines,
        num_nodes=machines,
        strategy=strategy,
        precision=recipe.precision,
    )


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Let all norms use the batch statistics of all processes.

    Raises:
        ValueError: the norms are of both kinds, or PyTorch's, which need a GPU, on the CPU.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    gated = [norm for norm in norms if isinstance(norm, GatedBatchNorm2d)]
    if not gated and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if len(gated) < len(norms):
        raise ValueError(
            "sync_batchnorm needs GatedBatchNorm2d alone, or PyTorch's norms alone and on GPUs;"
            f" this model has {len(gated)} and {len(norms) - len(gated)}, on {device.type!r}"
        )
    for norm in gated:
        norm.sync = True
    return model


def disconnect(fabric: Fabric) -> None:
    """Wait for all processes, and end the connection between those that were spawned.

    An open connection, or one that DistributedDataParallel's reducer still holds, is closed while
    the interpreter is locked; now and then gloo's thread needs the interpreter to come to its end,
    and the process hangs or aborts. So nothing may refer to the wrapped network any more.
    """
    fabric.barrier()
    if fabric.world_size > 1 and not torch.distributed.is_torchelastic_launched():
        gc.collect()
        torch.distributed.destroy_process_group()


@contextmanager
def settings(fabric: Fabric, recipe: Recipe) -> Iterator[None]:
    """Set the recipe's threads and let cuDNN measure; restore them and the generators."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(max(1, recipe.threads // fabric.world_size))
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees (glibc; elsewhere nothing happens).

    Large maps otherwise go back to the system at every free, and the page faults cost 20 to 28 %
    of a training step on the CPU. It holds for the whole process: programs call it, `fit` does not.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def record_graph(function: Callable[[], object]) -> Callable[[], None]:
    """Record the CUDA work of a function on the current stream, and return what repeats it.

    The stream must not be the default one, and what the function uses must have run there before:
    autograd keeps the stream on which a parameter was first used.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        function()
    return graph.replay
