"""Cost of GatedBatchNorm2d, without and with a gate, beside nn.BatchNorm2d: forward + backward.

    python benchmarks/norm.py [--rounds 60] [--threads 2]

Checks first that the results are equal bit for bit without a gate, and by the parity rule of the
tests with one. "again" is a second nn.BatchNorm2d: its ratio is the noise of the measurement.
"""

import argparse

import torch
from pairs import interleave, ratio
from torch import nn

from spem import SPEM, GatedBatchNorm2d
from spem.devices import keep_freed_memory

SHAPES = [(128, 16, 32, 32), (128, 64, 8, 8), (64, 64, 32, 32), (64, 256, 8, 8)]


def check() -> None:
    x = torch.randn(8, 16, 9, 9)
    if not torch.equal(GatedBatchNorm2d(16)(x), nn.BatchNorm2d(16)(x)):
        raise SystemExit("GatedBatchNorm2d without a gate differs from BatchNorm2d: nothing timed")
    gated = GatedBatchNorm2d(16, gate=SPEM(16, init="identity"))
    if not torch.equal(gated(x), nn.BatchNorm2d(16)(x)):
        raise SystemExit("the identity gate is none: nothing timed")


def step(module: nn.Module, x: torch.Tensor):
    grad = torch.ones_like(x)

    def run() -> None:
        module(x).backward(grad)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    check()
    for shape in SHAPES:
        for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            x = torch.randn(shape).to(memory_format=layout).requires_grad_()
            c = shape[1]
            modules = {
                "plain": nn.BatchNorm2d(c),
                "again": nn.BatchNorm2d(c),
                "ours": GatedBatchNorm2d(c),
                "SPEM": GatedBatchNorm2d(c, gate=SPEM(c)),
            }
            seconds = interleave({k: step(m, x) for k, m in modules.items()}, arguments.rounds)
            for case in ("again", "ours", "SPEM"):
                print(f"{shape} {name}  {ratio(seconds, case, 'plain')}")


if __name__ == "__main__":
    main()
