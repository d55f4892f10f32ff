"""Random cases of gates and norms.

They come in blocks of one kind, since the first case of a kind compiles its excitation, which
takes seconds.
"""

import copy
import random
from functools import partial

import torch
from drawn_maps import (
    LOW,
    differentiate,
    double,
    draw_maps,
    forced,
    rectified,
    size,
    structure_of,
    wide,
)
from proof import SEED, numbers_of
from rounding import check, moved
from torch import nn

from spem import kernels
from spem.gates import GATES, Gate, create_gate, gate_options
from spem.gates.attention import Attention
from spem.gates.gate import gated
from spem.kernels.eager import EAGER
from spem.kernels.reference import REFERENCE
from spem.norm import GatedBatchNorm2d

# How many cases have one kind.
BLOCK = 100
# What options are drawn from. Those that a gate needs beside others are drawn until they fit.
OPTIONS = {
    "pool": ("avg", "max", "min", "fixed", "adaptive", "srp"),
    "mix": (None, 0.0, 0.3),
    "mixing": ("squared", "sigmoid"),
    "alpha": (None, 0.2),
    "rho": (None, 0.4, 1.0),
    "regions": (1, 3),
    "per_channel": (False, True),
    "form": ("code", "paper"),
    "excitation": (True, False),
    "reweighting": (True, False),
    "init": ("paper", "identity"),
    "reduction": (1, 2, 4, 16),
    "bias": (True, False),
    "kernel_size": (None, 1, 3, 5, 7),
    "eps": (1e-5, 0.1),
    "mode": ("l1", "l2"),
    "after_relu": (False, True),
    "pools": (("avg", "max"), ("lp", "lse"), ("avg",)),
    "spatial": (True, False),
    "groups": (1, 2, 4, 64),
    "dct_size": (1, 4, 7),
    "frequencies": ("top1", "top2", "low8", "bot4", "top16"),
    "variant": ("icme-a", "icme-b", "icme-c", "tmm-a", "tmm-b", "tmm-c", "minus"),
    "source_channels": (None, 3),
    "order": (0, 1, 2, 3),
    "leader": (None,),
    "attention": ("position", "channel", "both", "se", "spem", "ie"),
    "attention_options": (None,),
    "both": (False, True),
    "branches": (2, 3),
    "margin": (1.0,),
    "weight": (0.5,),
    "e_lambda": (1e-4, 0.1),
    "activation": ("hard", "sigmoid"),
    "pooling": ("att", "avg"),
    "fusion": ("add", "mul", "both"),
    "factor": (1, 2, 4),
    "dilation": (1, 4),
    "fuse": ("product", "max", "sum"),
    "window": ("gap", "square"),
    "extent": (None, 2, 4),
    "map_size": (None,),  # the sizes of the maps differ
    "skip": (False, True),
    "layout": ("parallel", "sequential"),
    "channel_gate": (False, True),
}


def draw_options(numbers, name):
    """Draw options that suit each other, and a number of channels."""
    while True:
        channels = numbers.choice([1, 2, 4, 8, 16, 16, 24])
        known = gate_options(name)
        options = {o: numbers.choice(OPTIONS[o]) for o in known if numbers.random() < 0.5}
        try:
            create_gate(name, channels, **options)
        except ValueError:
            continue
        return channels, options


class Kind:
    """What the cases of a block have in common: the module, and which sizes are 1."""

    def __init__(self, number):
        numbers = random.Random(f"{SEED}/kind/{number}")
        name = numbers.choice([None, None, *GATES])
        self.normed = name is None or numbers.random() < 0.6
        self.channels, options = numbers.choice([1, 3, 8, 17]), {}
        gate = None
        if name is not None:
            self.channels, options = draw_options(numbers, name)
            gate = create_gate(name, self.channels, **options)
        norm = {"affine": numbers.random() < 0.8, "track_running_stats": numbers.random() < 0.9}
        norm["momentum"] = numbers.choice([0.1, 0.1, 0.1, None])
        self.module = GatedBatchNorm2d(self.channels, gate=gate, **norm) if self.normed else gate
        self.module.train(numbers.random() < 0.6)
        self.dtype = numbers.choice([torch.float32, torch.float32, torch.float64])
        self.module.to(self.dtype)
        self.single = {side: numbers.random() < 0.12 for side in ("images", "positions")}
        self.source = gate.needs_source and getattr(gate, "source_channels", None) if gate else None
        self.text = f"{name} {options}, {norm if self.normed else 'alone'}, {self.single}, "
        self.text += "training" if self.module.training else "evaluation"

    def is_one_pass(self):
        """Whether nothing between reading and writing feature maps is rounded to their dtype."""
        gate = self.module.gate if self.normed else self.module
        one = isinstance(gate, Gate) and gate.reads_statistics_only and not gate.reads_input
        return gate is None or (one if self.normed else isinstance(gate, Gate))


class Module:
    """A gate, or a norm with or without one, with new parameters and feature maps."""

    def __init__(self, number):
        numbers = numbers_of(number)
        self.kind = kind = Kind(number // BLOCK)
        self.generator_seed = numbers.getrandbits(62)
        generator = torch.Generator().manual_seed(self.generator_seed)
        self.module = copy.deepcopy(kind.module)
        self._draw_parameters(generator)
        n = 1 if kind.single["images"] else numbers.choice([2, 3, 4, 7])
        shape = (n, kind.channels, *size(numbers, kind.single["positions"]))
        self.dtype = kind.dtype if kind.dtype == torch.float64 else numbers.choice(LOW)
        self.given, text = draw_maps(numbers, generator, shape, self.dtype)
        self.given["source"] = None
        if kind.source:
            source = (n, kind.source, 5, 6)
            self.given["source"] = torch.randn(source, generator=generator).to(self.dtype)
        self.relu, self.gradient = numbers.random() < 0.5, numbers.random() < 0.8
        self.needs_x = numbers.random() < 0.9
        self.text = f"{kind.text}, {text}, relu {self.relu}, gradient {self.gradient}"

    def _draw_parameters(self, generator):
        for name, t in (*self.module.named_parameters(), *self.module.named_buffers()):
            if not t.is_floating_point() or name.endswith("gain") or name.endswith("basis"):
                continue
            drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                t.copy_(drawn.abs() + 0.5 if name.endswith("var") else drawn)
        if self.kind.normed and self.module.affine:
            # Of a weight of 0 all positions tie; a negative one swaps the extrema.
            nn.init.constant_(self.module.weight.data[:1], 0)

    def compute(self, module, backend, relu, given):
        for gate in (m for m in module.modules() if isinstance(m, Attention)):
            gate.reset()
            if hasattr(gate, "generator"):
                gate.generator = torch.Generator().manual_seed(7)
        rest = (given["residual"], relu, given["source"])
        with forced(backend):
            if self.kind.normed:
                return module(given["x"], *rest)
            return gated(module, given["x"], *rest)

    def run(self, backend, precision, given):
        module = copy.deepcopy(self.module).to(precision)
        leaves = {name: None if t is None else t.detach() for name, t in given.items()}
        for name in ("x", "residual") if self.gradient else ():
            if leaves[name] is not None:
                leaves[name].requires_grad_(self.needs_x)
        with torch.set_grad_enabled(self.gradient):
            out = self.compute(module, backend, self.relu, leaves)
        found = {"out": out.detach()}
        found |= {name: b for name, b in module.named_buffers() if b.is_floating_point()}
        if self.gradient and out.requires_grad:
            leaves |= dict(module.named_parameters())
            found |= differentiate(out, leaves, given["cotangent"])
        return found

    def check(self, backends):
        """Check the module by some backends against the reference in float64."""
        try:
            if self.relu:
                module = copy.deepcopy(self.module).double()
                rectified(partial(self.compute, module, REFERENCE, False), self.given, self.dtype)
            truth = self.run(REFERENCE, torch.float64, double(self.given))
        except ValueError as error:
            self._check_that_it_raises(str(error), backends)
            return
        if not self._is_held():
            return
        exact = self.dtype == torch.float64
        for name in backends:
            backend = kernels._load(name)
            actual = self.run(backend, self.kind.dtype, self.given)
            naive = REFERENCE if backend is EAGER else EAGER
            naive = truth if exact else self.run(naive, self.kind.dtype, self.given)
            served = backend is not EAGER and backend.serves(self.given["x"])
            one_pass = served and self.kind.is_one_pass()
            low = wide(self.dtype) if one_pass else self.dtype
            structure = structure_of(backend) if served else EAGER
            compute = partial(self.run, structure, torch.float64)
            check(actual, naive, truth, partial(moved, compute, double(self.given), low), name)

    def _is_held(self):
        """Whether float16 can hold the normalised feature map, which eager PyTorch stores."""
        if not self.kind.normed or self.dtype != torch.float16:
            return True
        norm = copy.deepcopy(self.module).double()
        with torch.no_grad():
            normalised = nn.BatchNorm2d.forward(norm, self.given["x"].double())
        return normalised.abs().max() < torch.finfo(self.dtype).max / 4

    def _check_that_it_raises(self, message, backends):
        for name in backends:
            try:
                self.run(kernels._load(name), self.kind.dtype, self.given)
            except ValueError:
                continue
            raise AssertionError(f"{name} does not raise: {message}")
