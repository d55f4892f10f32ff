"""What gates cost in one network: checked against the reference first, then measured in turns."""

import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spem import attach, auxiliary_loss, create_model, kernels
from spem._checks import check_choice, check_names, check_switch, check_whole
from spem._messages import shorten
from spem.compare.costs import NetworkWork, make_work, measure_networks, measuring
from spem.compare.timing import RedCaseError, check_parity, fastest_kernels
from spem.gates import GATES, gate_options
from spem.gates.attention import NoIdentityError
from spem.models.user_files import files_run, import_files
from spem.surgery.config import config_of
from spem.train.keys import Device
from spem.train.recipe import Recipe
from spem.train.setup import count_macs

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
    tell: Callable[[str], object] = lambda _: None,
) -> list[dict[str, Any]]:
    """Measure what gates cost in a network, over the same network without them.

    Nothing is measured unless each gate that can start as the identity then leaves the network's
    outputs as they are, and the backend agrees with the reference in outputs and gradients, by the
    rule of `check_parity`.

    Args:
        model: a name of `create_model`, or "package.module:function": a function without arguments
            that returns a network from images (N, C, H, W) to logits (N, classes). The module is
            also looked for in the current folder.
        gates: keys of `GATES`, each attached to a copy of the network.
        at: where, see `attach`.
        batch: images of a batch.
        size: side of the square images.
        channels_last: use the NHWC memory format.
        device: auto, cpu, cuda or mps.
        threads: of the CPU; None: PyTorch's choice.
        rounds: of the measurement; in each, every network takes its turn.
        tell: called with a line about what comes next, because all of it takes minutes.

    Returns:
        One object for the network without gates, one for the same network once more ("none again"),
        whose ratios show the noise, and one for each gate: `gate`, `kernels` (the backend),
        `parameters`, `macs` (multiply-adds of an image) and what `measure_networks` returns.

    Raises:
        RedCaseError: a check fails.
        ValueError: a network, a gate or a number is not allowed.
    """
    check_whole("rounds", rounds, least=2)
    check_whole("batch", batch, least=2)
    check_whole("size", size, most=4096)
    check_switch("channels_last", channels_last)
    if not isinstance(model, str):
        raise ValueError(f"model is {shorten(model)}, must be a name or package.module:function")
    for gate in (gates := check_names("gates", gates)):
        check_choice("gate", gate, GATES)
    threads = torch.get_num_threads() if threads is None else threads
    keys: dict[str, Any] = {"channels_last": channels_last, "device": device, "threads": threads}
    # The memory of a step is measured in another process, which has to know the same gates.
    recipe = Recipe(batch_size=batch, import_=files_run(), **keys)
    attached = [None, None, *gates]
    networks = [build_network(model, gate, at) for gate in attached]
    images = _draw_images(networks[0], recipe, size)
    with measuring(recipe, "") as place:
        tell("preparing the fastest kernels; compiling them takes up to half a minute at first")
        backend, few = fastest_kernels(place), images[:_CHECKED_IMAGES].to(place)
        for gate in gates:
            tell(f"checking {gate}: the {backend} kernels against the reference in float64")
            check_gate(model, gate, at, few, backend)
    builds = [partial(_make_gate_work, model, gate, at, recipe, size) for gate in attached]
    tell(f"timing {len(builds)} networks in turns, {rounds} rounds, then the memory of a step")
    costs = measure_networks(builds, recipe, backend, rounds)
    return [
        {
            "gate": name,
            "kernels": backend,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "macs": count_macs(network, images[:1])[0],
            **own,
        }
        for name, network, own in zip(["none", "none again", *gates], networks, costs, strict=True)
    ]


def build_network(
    model: str, gate: str | None = None, at: str = "residual", init: str | None = None
) -> nn.Module:
    """Build a network, with the same weights at each call, and attach a gate.

    Args:
        model: see `measure_gates`.
        gate: a key of `GATES`, or None.
        at: see `attach`.
        init: start of the gate; None for its default.

    Raises:
        ValueError: the function cannot be imported or returns no network; or see `attach`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _call_function(model) if ":" in model else create_model(model)
        if gate is not None:
            attach(network, gate, at=at, init=init)
    return network


def _call_function(path: str) -> nn.Module:
    """Return the network that a function of the user's, package.module:function, returns."""
    module, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        network = getattr(import_module(module), name)()
    except Exception as error:  # whatever the user's code may raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"model is {shorten(path)}, which gave no network: {reason}") from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise ValueError(f"{path} returned an object of {kind}, must return a torch.nn.Module")
    return network


def _draw_images(network: nn.Module, recipe: Recipe, size: int) -> Tensor:
    """Return random images with the channels that the first convolution of a network reads.

    Raises:
        ValueError: there is no convolution, or the network does not map them to logits.
    """
    channels = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if channels is None:
        raise ValueError("the network has no nn.Conv2d to read the number of image channels from")
    shape = (recipe.batch_size, channels, size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    form = torch.channels_last if recipe.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=form)
    with torch.no_grad():
        logits = network.eval()(images[:1])
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(
            f"the network returns {type(logits).__name__}, must return logits (N, classes)"
        )
    return images


def _make_gate_work(
    model: str, gate: str | None, at: str, recipe: Recipe, size: int
) -> NetworkWork:
    if parent_process() is not None:
        import_files(recipe.import_)
    network = build_network(model, gate, at)
    # Folding removes this library's norms alone, which would favour the gated form of another's.
    fold = config_of(build_network(model)) is not None
    images = _draw_images(network, recipe, size)
    return make_work(recipe, network, (images, torch.arange(len(images)) % 2), fold)


def check_gate(model: str, gate: str, at: str, images: Tensor, backend: str) -> None:
    """Check what a gate computes in a network, in a training step.

    Args:
        model: see `measure_gates`.
        gate: a key of `GATES`.
        at: see `attach`.
        images: (N, C, H, W), on the device and in the memory format of the measurement.
        backend: name of the backend to check.

    Raises:
        RedCaseError: the gate that starts as the identity changes the outputs, or outputs or
            gradients by the backend are less exact than those by the reference.
    """
    same = _start_as_identity(model, gate, at)
    if same is not None:
        output = {"output": _take_step(same, images, backend)["output"]}
        title = f"{gate} with init='identity' in {model}"
        _check_results(title, build_network(model), images, output)
    gated = build_network(model, gate, at)
    results = _take_step(gated, images, backend)
    _check_results(f"{gate} in {model}, {backend} kernels", gated, images, results)


def _start_as_identity(model: str, gate: str, at: str) -> nn.Module | None:
    """Return the network whose gates start as the identity; None where they cannot."""
    if "init" not in gate_options(gate):
        return None
    try:
        return build_network(model, gate, at, "identity")
    except NoIdentityError:
        return None


def _check_results(
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
    """Return the output of a copy of a network in training, and the gradient of all its weights.

    The gradients are one vector: those of single weights are small sums, dominated by rounding.
    """
    twin = copy.deepcopy(network).train().to(images.device, images.dtype)
    with torch.random.fork_rng(), kernels.use(backend):
        torch.manual_seed(0)
        logits = twin(images)
        labels = torch.arange(len(images), device=images.device) % logits.shape[1]
        (F.cross_entropy(logits, labels) + auxiliary_loss(twin)).backward()
    gradients = [p.grad.flatten() for p in twin.parameters() if p.grad is not None]
    return {"output": logits.detach(), "gradient": torch.cat(gradients)}
