"""Gates beside the usual way of writing them in PyTorch: `python -m benchmarks.position_gates`.

Each is checked first, and not timed where it is wrong. A line has the ratio of the times of one
forward and backward pass, usual over ours, in turns: above 1 ours is faster.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spem import create_gate, kernels
from spem.gates import NAM, SA, SE, Attention, SimAM
from spem.train.devices import keep_freed_memory

SHAPES = ((64, 256, 14, 14), (64, 64, 56, 56))
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
OPTIONS = {"sa": {"groups": 8}}


def usual_se(gate: SE, x: Tensor) -> Tensor:
    """Compute SE."""
    weights = gate.fc2(F.relu(gate.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1)))).sigmoid()
    return x * weights[:, :, None, None]


def usual_simam(gate: SimAM, x: Tensor) -> Tensor:
    """Compute SimAM."""
    squares = (x - x.mean((2, 3), keepdim=True)).pow(2)
    var = squares.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
    return x * torch.sigmoid(squares / (4 * (var + gate.e_lambda)) + 0.5)


def usual_nam(gate: NAM, x: Tensor) -> Tensor:
    """Compute NAM."""
    scale = gate.bn.weight.detach().abs()
    return x * torch.sigmoid(gate.bn(x) * (scale / scale.sum())[:, None, None])


def usual_sa(gate: SA, x: Tensor) -> Tensor:
    """Compute SA."""
    n, c, h, w = x.shape
    column = (1, -1, 1, 1)
    first, second = x.reshape(n * gate.groups, -1, h, w).chunk(2, 1)
    means = F.adaptive_avg_pool2d(first, 1)
    first = first * torch.sigmoid(gate.cweight.view(column) * means + gate.cbias.view(column))
    places = gate.sweight.view(column) * gate.gn(second) + gate.sbias.view(column)
    mixed = torch.cat([first, second * places.sigmoid()], 1).reshape(n, 2, -1, h, w)
    return mixed.permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


USUAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "se": usual_se,
    "simam": usual_simam,
    "nam": usual_nam,
    "sa": usual_sa,
}


def results(call: Callable[[Tensor], Tensor], gate: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output and the gradients of x and of the gate's parameters."""
    inputs = [x.detach().requires_grad_(), *gate.parameters()]
    out = call(inputs[0])
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    found = torch.autograd.grad(out, inputs, weights, allow_unused=True)
    return [out.detach(), *(g for g in found if g is not None)]


def check(name: str, gate: Attention, channels: int) -> None:
    """Raise AssertionError unless a gate equals its usual form in float64."""
    wide = create_gate(name, channels, **OPTIONS.get(name, {})).double()
    wide.load_state_dict(gate.state_dict())
    for layout in FORMATS.values():
        x = torch.randn(3, channels, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
        ours = results(wide, wide, x)
        usual = results(lambda x: USUAL[name](wide, x), wide, x)
        for one, other in zip(ours, usual, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def compare(name: str, gate: Attention, x: Tensor, pairs: int) -> list[float]:
    """Return the ratio of each pair of runs, usual over ours."""
    grad = torch.randn_like(x)

    def seconds(call: Callable[[Tensor], Tensor]) -> float:
        inputs = [x.detach().requires_grad_(), *gate.parameters()]
        start = time.perf_counter()
        torch.autograd.grad(call(inputs[0]), inputs, grad, allow_unused=True)
        return time.perf_counter() - start

    calls: list[Callable[[Tensor], Tensor]] = [gate, lambda x: USUAL[name](gate, x)]
    ratios = []
    for pair in range(-1, pairs):
        order = calls if pair % 2 else calls[::-1]
        times = {id(call): seconds(call) for call in order}
        ratios.append(times[id(calls[1])] / times[id(calls[0])])
    return ratios[1:]  # the first pair compiles


def main() -> int:
    """Print a line for each gate, shape, memory format and backend; return 1 where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gates", nargs="+", choices=USUAL, default=[*USUAL])
    parser.add_argument("--backends", nargs="+", default=["compiled", "eager"])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    for shape in SHAPES:
        for layout, memory_format in FORMATS.items():
            x = torch.randn(shape).contiguous(memory_format=memory_format)
            for name in given.gates:
                gate = create_gate(name, shape[1], **OPTIONS.get(name, {}))
                for parameter in gate.parameters():
                    parameter.data.add_(0.3 * torch.randn_like(parameter))
                for backend in given.backends:
                    with kernels.use(backend):
                        try:
                            check(name, gate, shape[1])
                        except AssertionError as error:
                            print(f"{name}, {backend}, {layout}: red, not timed: {error}")
                            return 1
                        ratios = sorted(compare(name, gate, x, given.pairs))
                    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
                    print(
                        f"{name}, {backend}, {'x'.join(map(str, shape))} {layout}:"
                        f" {statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}],"
                        f" {len(ratios)} pairs",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
