"""The machine that a run uses: devices, precision, threads, streams, memory."""

import ctypes
import gc
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed

from spem._extras import needs_extra
from spem._messages import shorten
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
        ValueError: this machine lacks the devices, the precision or the GPU for `cuda_graph`.
    """
    elastic = torch.distributed.is_torchelastic_launched()
    machines = int(os.environ["GROUP_WORLD_SIZE"]) if elastic else 1
    if elastic and int(os.environ["WORLD_SIZE"]) != recipe.devices:
        raise ValueError(
            f"devices is {recipe.devices}, must be {os.environ['WORLD_SIZE']}, the processes that"
            " torchrun has started"
        )
    device = _choose_device(recipe, machines)
    several = "ddp" if elastic else "ddp_spawn"
    return Fabric(
        accelerator=device,
        devices=recipe.devices // machines,
        num_nodes=machines,
        strategy=several if recipe.devices > 1 else "auto",
        precision=choose_precision(recipe),
    )


def _choose_device(recipe: Recipe, machines: int) -> str:
    """Return "cuda", "mps" or "cpu", if there are enough of it and it can do what is asked."""
    device, number = _find_device(recipe, machines)
    if number < recipe.devices:
        raise ValueError(
            f"{recipe.devices} of {shorten(device)} are needed, this machine has {number}"
        )
    if recipe.cuda_graph and device != "cuda":
        raise ValueError(
            f"cuda_graph needs a CUDA device, and this run would use {shorten(device)}"
        )
    precisions = list(_PRECISIONS[device])
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        precisions.remove("bf16-mixed")
    if recipe.precision not in ("auto", *precisions):
        raise ValueError(
            f"precision {shorten(recipe.precision)} is not possible on {shorten(device)}, which has"
            f" {', '.join(precisions)}"
        )
    return device


def _find_device(recipe: Recipe, machines: int = 1) -> tuple[str, int]:
    """Return the name of a recipe's device, and how many of it there are."""
    present = {
        "cuda": torch.cuda.device_count() * machines,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": recipe.devices,
    }
    device = recipe.device
    if device == "auto":
        device = next(name for name, number in present.items() if number)
    return device, present[device]


def choose_precision(recipe: Recipe) -> Literal["32", "bf16-mixed", "16-mixed"]:
    """Return the precision of a recipe; for auto bf16-mixed where the device has bfloat16, else 32.

    A processor has it where it multiplies matrices in bfloat16 (AVX512-BF16 or AMX): elsewhere
    bfloat16 is emulated, which is slower than float32.
    """
    if recipe.precision != "auto":
        return recipe.precision
    device, number = _find_device(recipe)
    if device == "cuda":
        fast = number > 0 and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older releases of PyTorch do not say what the processor has.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = device == "cpu" and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16-mixed" if fast else "32"


def disconnect(fabric: Fabric) -> None:
    """Wait for all processes, and end the connection between those that were spawned.

    The caller must have dropped the network that Fabric wrapped: DistributedDataParallel's reducer
    holds the connection, and a connection that is still open at the end of the interpreter is
    closed while the interpreter is locked, where gloo's thread sometimes waits for it, and the
    process hangs or aborts.
    """
    fabric.barrier()
    if fabric.world_size > 1 and not torch.distributed.is_torchelastic_launched():
        gc.collect()
        torch.distributed.destroy_process_group()


def count_threads(recipe: Recipe) -> int:
    """Return the CPU threads of a run, over all its processes.

    Where the recipe leaves them open, they are those that PyTorch uses in this process, and in each
    of torchrun's: `OMP_NUM_THREADS`, else one for each core that the process may use.
    """
    if recipe.threads is not None:
        return recipe.threads
    processes = recipe.devices if torch.distributed.is_torchelastic_launched() else 1
    return torch.get_num_threads() * processes


def count_workers(recipe: Recipe) -> int:
    """Return the number of processes of each device that decode streamed images."""
    if recipe.workers is not None:
        return recipe.workers
    if create_fabric(recipe).device.type == "cpu":
        return 0
    return min(8, max(1, torch.get_num_threads() // recipe.devices))


@contextmanager
def settings(fabric: Fabric, recipe: Recipe) -> Iterator[None]:
    """Set this process's share of the threads and let cuDNN choose its algorithms by measuring.

    Both are restored at the end, as are the random generators.
    """
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(max(1, count_threads(recipe) // fabric.world_size))
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


def create_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a new CUDA stream that waits for the work so far, or None on another device.

    `torch.cuda.stream` takes either.
    """
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def join_stream(stream: torch.cuda.Stream | None) -> None:
    """Let the current CUDA stream wait for the work of another; None is ignored."""
    if stream is not None:
        torch.cuda.current_stream(stream.device).wait_stream(stream)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees (glibc; elsewhere nothing happens).

    Large feature maps otherwise go back to the system at every free, and the page faults cost 20 to
    28 % of a training step on the CPU. The setting is the whole process's: the commands make it,
    `fit` does not.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def record_graph(function: Callable[[], object]) -> Callable[[], None]:
    """Record the CUDA work of a function on the current stream, and return what repeats it.

    The current stream must not be the default one, and the function must have run on it before,
    because autograd keeps the stream on which a parameter was first used.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        function()
    return graph.replay
