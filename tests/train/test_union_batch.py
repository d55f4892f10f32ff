"""Two processes with shared batch statistics train as one with the union of their batches."""

import os

import gatings
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import spem
from spem.gates import GATES
from spem.train.synchronised import synchronise

# One of each family; `make test-gates` has all.
FAMILIES = ("spem", "srm", "cbam", "iebn")
OPTIONS = gatings.OPTIONS | {"srp": {"rho": 1.0}}
STEPS, IMAGES = 20, 8


class Net(nn.Module):
    """Two gated blocks without a kink at which a rounding could become a difference."""

    def __init__(self, gate, **options):
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)
        if gate is not None:
            spem.attach(self, gate, at=["norm1", "norm2"], **options)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).tanh()
        x = (x + self.norm2(self.conv2(x))).tanh()
        return self.head(x.mean((2, 3)))


def losses(network, share):
    """The losses of the whole batch over the steps, this process computing its share of each."""
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    found = []
    for _ in range(STEPS):
        images = torch.randn(IMAGES, 3, 13, 13, generator=generator)
        labels = torch.randint(4, (IMAGES,), generator=generator)
        sum_ = nn.functional.cross_entropy(network(images[share]), labels[share], reduction="sum")
        loss = sum_ / IMAGES
        optimizer.zero_grad()
        loss.backward()
        total = loss.detach().clone()
        if dist.is_initialized():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
            dist.all_reduce(total)
        optimizer.step()
        found.append(total.item())
    return found


def work(rank, port, names, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    # Shares of different sizes.
    share = slice(0, 3) if rank == 0 else slice(3, IMAGES)
    found = {
        name: losses(synchronise(Net(name, **OPTIONS.get(name, {})), torch.device("cpu")), share)
        for name in names
    }
    if rank == 0:
        torch.save(found, folder / "losses.pt")
    dist.destroy_process_group()


def check(names, folder):
    port = 20000 + (os.getpid() * 7) % 20000
    mp.start_processes(work, args=(port, names, folder), nprocs=2, start_method="spawn")
    shared = torch.load(folder / "losses.pt")
    for name in names:
        alone = losses(Net(name, **OPTIONS.get(name, {})), slice(None))
        assert shared[name] == pytest.approx(alone, abs=1e-5), name
        assert len(set(alone)) == STEPS, name


def test_two_processes_equal_one_with_the_union_batch(tmp_path):
    check([None, *FAMILIES], tmp_path)


@pytest.mark.gates
def test_two_processes_equal_one_for_every_gate(tmp_path):
    check([name for name in GATES if name not in FAMILIES], tmp_path)
