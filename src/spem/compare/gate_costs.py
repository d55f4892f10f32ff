"""What a gate costs in one network: checked against the reference first, then measured in turns."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spem import attach, auxiliary_loss, create_model, kernels
from spem.compare.costs import describe_conditions, make_work, measure_speeds
from spem.compare.timing import (
    RedCaseError,
    check_parity,
    fastest_kernels,
    measure_apart,
    step_memory,
)
from spem.gates import gate_options
from spem.surgery.config import own_config
from spem.train.devices import create_fabric, settings
from spem.train.recipe import Device, Recipe

_CHECKED_IMAGES = 8  # of the batch: the truth is computed in float64
# The reference is run on inputs multiplied by 1 + k·eps, too, which moves each number by about k
# roundings: a deep network amplifies roundings by chance, and the largest of their errors counts.
_ROUNDINGS = (0, 1, -1, 2)


def measure_gates(
    model: str = "resnet20",
    gates: Sequence[str] = ("spem",),
    at: str = "residual",
    *,
    batch: int = 32,
    size: int = 32,
    channels_last: bool = True,
    device: Device = "auto",
    threads: int | None = None,
    rounds: int = 20,
) -> list[dict[str, Any]]:
    """Measure what gates cost in a network, over the same network without them.

    Nothing is measured unless each gate that can start as the identity leaves the network's outputs
    as they are, and the backend that serves the network agrees with the reference: outputs and
    gradients, by the rule of `check_parity`.

    Args:
        model: a name of `create_model`, or "package.module:function": a function without arguments
            that returns a network from images (N, C, H, W) to logits (N, classes). The current
            folder is among those that are searched for the module.
        gates: keys of `GATES`, each attached to a copy of the network.
        at: where, see `attach`.
        batch: images of a batch.
        size: side of the square images.
        channels_last: use the NHWC memory format.
        device: auto, cpu, cuda or mps.
        threads: of the CPU; None: PyTorch's choice.
        rounds: of the measurement; in each, every network takes its turn.

    Returns:
        One object for the network without gates, one for the same network once more ("none again"),
        whose ratios show the noise, and one for each gate: `gate`, `parameters`, `macs`
        (multiply-adds of an image), what `measure_speeds` returns, `memory` (peak bytes of a
        training step, or None), and the conditions.

    Raises:
        RedCaseError: a check fails.
        ValueError: a network, a gate or a number is not allowed.
    """
    if rounds < 2:
        raise ValueError(f"rounds is {rounds}, must be at least 2")
    recipe = Recipe(
        batch_size=batch,
        channels_last=channels_last,
        device=device,
        threads=torch.get_num_threads() if threads is None else threads,
    )
    fabric, names = create_fabric(recipe), ["none", "none again", *gates]
    fold = own_config(build_network(model)) is not None
    networks = [build_network(model, gate, at) for gate in [None, None, *gates]]
    images, labels = _draw_batch(networks[0], batch, size, channels_last, fabric.device)
    backend = fastest_kernels(fabric.device)
    with settings(fabric, recipe):
        for gate in gates:
            check_gate(model, gate, at, images[:_CHECKED_IMAGES], backend)
        with kernels.use(backend):
            sizes = [_count(network, images[:1]) for network in networks]
            works = [
                make_work(create_fabric(recipe), recipe, network, (images, labels), fold)
                for network in networks
            ]
            speeds = measure_speeds(works, rounds, fabric.device)
            memory = [
                step_memory(work.train, fabric.device)
                if fabric.device.type == "cuda"
                else measure_apart(_measure_step_memory, model, gate, at, recipe, size)
                for work, gate in zip(works, [None, None, *gates], strict=True)
            ]
        conditions = describe_conditions(fabric.device, batch, rounds, backend)
    return [
        {"gate": name, "parameters": parameters, "macs": macs, **own, "memory": used, **conditions}
        for name, (parameters, macs), own, used in zip(names, sizes, speeds, memory, strict=True)
    ]


def build_network(
    model: str, gate: str | None = None, at: str = "residual", init: str | None = None
) -> nn.Module:
    """Build a network, the same weights each time, and attach a gate.

    Args:
        model: see `measure_gates`.
        gate: a key of `GATES`, or None.
        at: see `attach`.
        init: start of the gate; None for its default.

    Raises:
        ValueError: the function cannot be imported, or returns no network; or see `attach`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _import_function(model)() if ":" in model else create_model(model)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{model} returned {network!r}, must return a torch.nn.Module")
        if gate is not None:
            attach(network, gate, at=at, init=init)
    return network


def _import_function(path: str) -> Any:
    module, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model is {path!r}, which cannot be imported: {error}") from error


def _draw_batch(
    network: nn.Module, batch: int, size: int, channels_last: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return random images for the first convolution of a network, and labels of two classes."""
    convolution = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise ValueError("the network has no nn.Conv2d, from which the images take their channels")
    images = torch.randn(
        batch, convolution.in_channels, size, size, generator=torch.Generator().manual_seed(1)
    )
    images = images.to(device, memory_format=_memory_format(channels_last))
    return images, torch.arange(batch, device=device) % 2


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _count(network: nn.Module, image: Tensor) -> tuple[int, int]:
    """Return the parameters of a network, and its multiply-adds for one image."""
    twin = copy.deepcopy(network).eval().to(image.device)
    # Compiled kernels would be traced under the counter, and count once more with symbolic sizes.
    with torch.no_grad(), kernels.use("eager"), FlopCounterMode(display=False) as counter:
        twin(image)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


def check_gate(model: str, gate: str, at: str, images: Tensor, backend: str) -> None:
    """Check what a gate computes in a network, in a training step.

    Args:
        model: see `measure_gates`.
        gate: a key of `GATES`.
        at: see `attach`.
        images: (N, C, H, W), in the memory format and on the device of the measurement.
        backend: name of the backend to check.

    Raises:
        RedCaseError: the gate that starts as the identity changes the outputs, or outputs or
            gradients by the backend are less exact than those by the reference.
    """
    if "init" in gate_options(gate):
        same = build_network(model, gate, at, "identity")
        output = {"output": _take_step(same, images, backend)["output"]}
        title = f"{gate} with init='identity' in {model}"
        _check_parity(title, build_network(model), images, output)
    gated = build_network(model, gate, at)
    results = _take_step(gated, images, backend)
    _check_parity(f"{gate} in {model}, {backend} kernels", gated, images, results)


def _check_parity(
    title: str, network: nn.Module, images: Tensor, results: dict[str, Tensor]
) -> None:
    """Hold results against the truth in float64, and against the reference's own errors."""
    eps = torch.finfo(images.dtype).eps
    naive = [
        _take_step(network, (1 + k * eps) * images.contiguous(memory_format=layout), "reference")
        for layout in (torch.channels_last, torch.contiguous_format)
        for k in _ROUNDINGS
    ]
    try:
        check_parity(results, naive, _take_step(network, images.double(), "reference"), order=2)
    except RedCaseError as error:
        raise RedCaseError(f"{title}: {error}") from error


def _take_step(network: nn.Module, images: Tensor, backend: str) -> dict[str, Tensor]:
    """Return the outputs of a copy of a network in training, and the gradients of its weights."""
    twin = copy.deepcopy(network).train().to(images.device, images.dtype)
    with torch.random.fork_rng(), kernels.use(backend):
        torch.manual_seed(0)
        logits = twin(images)
        labels = torch.arange(len(images), device=images.device) % logits.shape[1]
        (F.cross_entropy(logits, labels) + auxiliary_loss(twin)).backward()
    gradients = {
        f"gradient of {name}": parameter.grad
        for name, parameter in twin.named_parameters()
        if parameter.grad is not None
    }
    return {"output": logits.detach(), **gradients}


def _measure_step_memory(
    model: str, gate: str | None, at: str, recipe: Recipe, size: int
) -> int | None:
    recipe = replace(recipe, device="cpu")
    fabric, network = create_fabric(recipe), build_network(model, gate, at)
    fold = own_config(build_network(model)) is not None
    batch = _draw_batch(network, recipe.batch_size, size, recipe.channels_last, fabric.device)
    with settings(fabric, recipe), kernels.use(fastest_kernels(fabric.device)):
        return step_memory(make_work(fabric, recipe, network, batch, fold).train, fabric.device)
