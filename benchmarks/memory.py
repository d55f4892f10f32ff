"""Peak memory of training ResNet-164 on the CPU: SPEM fused, SPEM unfused, and no gate at all.

    python benchmarks/memory.py

Batch 128 of 32×32 images, float32, channels_last, SGD with momentum; each network in a process of
its own, two steps, the high-water mark of the resident memory as the kernel counts it (Linux).
"""

import resource
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spem
from spem.train.devices import keep_freed_memory

MODEL, BATCH, STEPS = "resnet164", 128, 2


class Unfused(nn.Module):
    """What `GatedBatchNorm2d` computes, one operation after the other."""

    def __init__(self, fused: spem.GatedBatchNorm2d):
        super().__init__()
        self.norm = nn.BatchNorm2d(fused.num_features)
        self.gate = fused.gate

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        source: Tensor | None = None,
    ) -> Tensor:
        out = self.norm(x)
        if self.gate is not None:
            out = self.gate(out)
        if residual is not None:
            out += residual
        return F.relu_(out) if relu else out


def unfuse(module: nn.Module) -> nn.Module:
    """Replace every `GatedBatchNorm2d` below a module, in place."""
    for name, child in module.named_children():
        fused = isinstance(child, spem.GatedBatchNorm2d)
        setattr(module, name, Unfused(child) if fused else unfuse(child))
    return module


NETWORKS = {
    "SPEM, GatedBatchNorm2d": lambda: spem.create_model(MODEL, "spem"),
    "SPEM, torch.nn.BatchNorm2d": lambda: unfuse(spem.create_model(MODEL, "spem")),
    "no gate, torch.nn.BatchNorm2d": lambda: unfuse(spem.create_model(MODEL)),
}


def resident() -> float:
    """Return the most memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(name: str) -> None:
    """Train one of the networks and print the peak before the first step and after the last."""
    keep_freed_memory()
    torch.manual_seed(0)
    network = nn.utils.convert_conv2d_weight_memory_format(NETWORKS[name](), torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,))
    before = resident()
    for _ in range(STEPS):
        loss = F.cross_entropy(network(images), labels) + spem.auxiliary_loss(network)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"{name:32} {resident():8.0f} MiB, of which {before:.0f} before the first step")


def main() -> None:
    print(
        f"{MODEL}, batch {BATCH}, CPU, torch {torch.__version__}: peak resident memory", flush=True
    )
    for name in NETWORKS:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    train(sys.argv[1]) if len(sys.argv) > 1 else main()
