"""Any value for any argument of the public functions: a result, or one clear sentence."""

import inspect

import pytest
import torch
from proof import cases, numbers_of
from torch import nn
from torch.optim import SGD

import spem
from wrong_values import VALUES, attempt
from spem import explain, functional, gates, kernels, models, surgery
from spem._messages import shorten
from spem.data import Batches, Split, load_dataset, prepare_image
from spem.data.batches import measure_statistics, normalise
from spem.export import load_network, load_weights, save_network
from spem.gates import GATES, create_gate
from spem.models import create_model
from spem.train.prediction import find_classifier, list_pictures

X = torch.linspace(-2, 2, 2 * 8 * 25).view(2, 8, 5, 5)
IMAGES = torch.arange(4 * 192).remainder(251).to(torch.uint8).view(4, 3, 8, 8)
SPLIT = Split(IMAGES, torch.tensor([0, 1, 0, 1]))


def network(gate="se"):
    return create_model("resnet8", gate)


def state():
    return network(None).state_dict()


def optimizer():
    return SGD(network().parameters(), 0.1)


def gate():
    return create_gate("eca", 8)


# Arguments that may be wrong in their own way.
MAPS = [
    *(X[0], X[None], X[:0], X[:, :0], X[:, :, :0], X[:, :4], X[:1], X.long(), X.bool(), X.cfloat()),
    *(
        X.half(),
        X.double(),
        X.to(torch.float8_e4m3fn),
        X.to("meta"),
        X.to_sparse(),
        X.expand(2, 8, 5, 5),
    ),
    *(X[:, :, :1, :1], X.permute(0, 1, 3, 2), X.clone().requires_grad_(), X * float("nan")),
    *(
        torch.zeros(2, 8),
        torch.zeros(2, 8).cfloat(),
        torch.zeros(2, 8, device="meta"),
        torch.zeros(8),
    ),
]
ODD = [
    network,
    gate,
    state,
    optimizer,
    lambda: nn.Linear(2, 2),
    lambda: SPLIT,
    lambda: nn.Sequential(),
]
WRONG = [*VALUES, *MAPS, IMAGES, IMAGES[0]]


def new_norm(**options):
    return spem.GatedBatchNorm2d(**options)(torch.randn(2, options["num_features"], 4, 4))


def call_norm(**arguments):
    return spem.GatedBatchNorm2d(8, gate=create_gate("se", 8))(**arguments)


def call_gate(name):
    options = {"srp": {"rho": 0.5}, "sge": {"groups": 2}}.get(name, {})
    return lambda x: create_gate(name, 8, **options, **few(name)).eval()(x)


def few(name):
    return (
        {"frequencies": "top4"} if name == "fcanet" else {"reduction": 4} if name in REDUCED else {}
    )


REDUCED = [name for name in GATES if "reduction" in gates.gate_options(name)]


def register(name, gate):
    try:
        return gates.register(name)(gate)
    finally:
        if isinstance(name, str) and name not in OWN:
            GATES.pop(name, None)


def register_model(name, build):
    try:
        return models.register_model(name)(build)
    finally:
        if isinstance(name, str):
            models.registry.MODELS.pop(name, None)


OWN = set(GATES)


def use(name):
    with kernels.use(name):
        pass


def build_network(num_classes, in_channels):
    return nn.Linear(in_channels, num_classes)


def batches(**options):
    made = Batches(**options)
    return [x.shape for x, _ in made.in_order()]


def record(model):
    with gates.record_gates(model) as found:
        return found


def save(tmp_path, model, config):
    save_network(tmp_path, model, config)


CONFIG = {
    "classes": ["a", "b"],
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "image_size": [8, 8],
    "in_channels": 3,
}

# Functions, and their arguments when all is well; a function among these makes the argument.
FUNCTIONS = {
    "pool": (functional.pool, {"x": X, "statistics": ["mean", "max"]}),
    "recalibrate": (
        functional.recalibrate,
        {"x": X, "scale": torch.ones(2, 8), "shift": torch.ones(2, 8), "residual": X, "relu": True},
    ),
    "norm": (
        new_norm,
        {"num_features": 8, "eps": 1e-5, "momentum": 0.1, "affine": True}
        | {"track_running_stats": True, "device": "cpu", "dtype": torch.float32, "gate": gate},
    ),
    "call norm": (call_norm, {"x": X, "residual": X, "relu": True}),
    **{f"call {name}": (call_gate(name), {"x": X}) for name in sorted(GATES)},
    "create_gate": (
        lambda name, channels: create_gate(name, channels),
        {"name": "se", "channels": 8},
    ),
    "gate_options": (gates.gate_options, {"name": "se"}),
    "register": (register, {"name": "new", "gate": spem.SPEM}),
    "auxiliary_loss": (gates.auxiliary_loss, {"model": network}),
    "mixing_ratios": (gates.mixing_ratios, {"model": network}),
    "record_gates": (record, {"model": network}),
    "create_model": (
        create_model,
        {"name": "resnet8", "gate": "se", "num_classes": 3, "in_channels": 3, "block": "basic"}
        | {"placement": "norm", "mask": [1] * 7, "pretrained": None},
    ),
    "register_model": (register_model, {"name": "own", "build": build_network}),
    "attach": (
        surgery.attach,
        {"model": lambda: network(None), "gate": "se", "at": "layer*.bn2", "init": "identity"}
        | {"mask": [1, 1, 0], "dry_run": False, "optimizer": None, "reduction": 4},
    ),
    "detach": (surgery.detach, {"model": network, "optimizer": None}),
    "load_backbone": (
        surgery.load_backbone,
        {"model": network, "state_dict": state, "ignore": ["fc.*"]},
    ),
    "convert_official": (
        surgery.convert_official,
        {"method": "eca", "state_dict": {"conv.weight": torch.ones(1, 1, 3)}},
    ),
    "deploy": (
        surgery.deploy,
        {"model": network, "constant_gates": None, "report": None, "fold_batchnorm": True}
        | {"example": torch.zeros(1, 3, 8, 8)},
    ),
    "config_of": (surgery.config_of, {"model": network}),
    "gate_report": (
        explain.gate_report,
        {"model": network, "batches": [(torch.zeros(2, 3, 8, 8), None)]},
    ),
    "use": (use, {"name": "eager"}),
    "why_not": (kernels.why_not, {"name": "eager"}),
    "load_network": (load_network, {"folder": "nowhere"}),
    "load_weights": (load_weights, {"model": network, "source": "nowhere"}),
    "load_dataset": (
        load_dataset,
        {"name": "digits", "data_dir": "nowhere", "download": False, "validation": 0.1, "seed": 0}
        | {"image_size": 8, "on_bad_image": "raise"},
    ),
    "Batches": (
        batches,
        {"split": SPLIT, "batch_size": 2, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": 1}
        | {"flip": True, "device": "cpu", "channels_last": True, "rank": 0, "world_size": 1},
    ),
    "prepare_image": (prepare_image, {"path": "nowhere", "size": (8, 8), "channels": 3}),
}


def draw(case):
    """Return the name of a function and its arguments, of which one or two are wrong."""
    numbers = numbers_of(case)
    name = numbers.choice(list(FUNCTIONS))
    arguments = dict(FUNCTIONS[name][1])
    for key in numbers.choices(list(arguments), k=numbers.randint(1, 2)):
        arguments[key] = numbers.choice(ODD) if numbers.random() < 0.2 else numbers.choice(WRONG)
    return name, arguments


MAKERS = {*ODD, network, state, gate, optimizer}
MAKERS |= {a for _, own in FUNCTIONS.values() for a in own.values() if inspect.isfunction(a)} - {
    build_network
}


def words_of(name, arguments):
    return f"{name}: " + ", ".join(f"{key}={shorten(value)}" for key, value in arguments.items())


def run(name, arguments):
    values = {
        key: value() if inspect.isfunction(value) and value in MAKERS else value
        for key, value in arguments.items()
    }
    names = [*arguments, *map(shorten, values.values()), "input", "gate", "channels"]
    attempt(lambda: FUNCTIONS[name][0](**values), words_of(name, arguments), names)


@pytest.mark.parametrize("numbers", cases(100_000, 300))
def test_a_function_works_or_says_what_is_allowed(numbers):
    for case in numbers:
        run(*draw(case))
