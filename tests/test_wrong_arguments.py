"""Any value for any argument of the public functions: a result, or one clear sentence."""

from pathlib import Path

import pytest
import torch
from proof import cases, numbers_of
from torch import nn
from torch.optim import SGD
from wrong_values import VALUES, attempt

import spem
from spem import explain, functional, gates, kernels, models, surgery
from spem._messages import shorten
from spem.compare import load_study, measure_gates
from spem.data import Batches, Split, load_dataset, prepare_image
from spem.export import load_network, load_weights
from spem.gates import GATES, create_gate, gate_options
from spem.models import create_model
from spem.report import report
from spem.train import Recipe, fit, load_recipe
from spem.train.prediction import find_classifier, list_pictures, predict

X = torch.linspace(-2, 2, 2 * 8 * 25).view(2, 8, 5, 5)
IMAGES = torch.arange(4 * 192).remainder(251).to(torch.uint8).view(4, 3, 8, 8)
SPLIT = Split(IMAGES, torch.tensor([0, 1, 0, 1]))
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "max-and-min.png"
CONFIG = {"classes": [*"abcdefghij"], "mean": [0.5] * 3, "std": [0.5] * 3}
CONFIG |= {"image_size": [8, 8], "in_channels": 3}
NEEDED = {"srp": {"rho": 0.5}, "sge": {"groups": 2}, "fcanet": {"frequencies": "top4"}}


class Made:
    """An argument that is made anew for each call."""

    def __init__(self, make):
        self.make = make


PLAIN, GATED = (Made(lambda gate=gate: create_model("resnet8", gate)) for gate in (None, "se"))
ATTACHED = Made(lambda: attached_network())
STATE = Made(lambda: create_model("resnet8").state_dict())
OPTIMIZER = Made(lambda: SGD(create_model("resnet8").parameters(), 0.1))
GATE = Made(lambda: create_gate("eca", 8))
OBJECTS = [PLAIN, GATED, STATE, OPTIMIZER, GATE, Made(nn.Sequential), SPLIT]
MAPS = [
    *(X[0], X[None], X[:0], X[:, :0], X[:, :, :0], X[:, :4], X[:1], X[:, :, :1, :1], X.half()),
    *(X.long(), X.bool(), X.cfloat(), X.double(), X.to(torch.float8_e4m3fn), X.to("meta")),
    *(X.to_sparse(), X[:1].expand(2, 8, 5, 5), X.permute(0, 1, 3, 2), X * float("nan")),
    *(X.clone().requires_grad_(), IMAGES, IMAGES[0], torch.zeros(2, 8), torch.zeros(8)),
    *(torch.zeros(2, 8).cfloat(), torch.zeros(2, 8, device="meta")),
]


def call_norm(**arguments):
    return spem.GatedBatchNorm2d(8, gate=create_gate("se", 8))(**arguments)


def call_gate(name):
    options = dict(NEEDED.get(name, {}))
    if "reduction" in gate_options(name):
        options["reduction"] = 4
    return lambda x: create_gate(name, 8, **options).eval()(x)


def register(name, gate):
    before = dict(GATES)
    try:
        gates.register(name)(gate)
    finally:
        GATES.clear()
        GATES.update(before)


def register_model(name, build):
    try:
        models.register_model(name)(build)
    finally:
        models.registry.MODELS.clear()


def build_network(num_classes, in_channels):
    return nn.Linear(in_channels, num_classes)


def enter(context):
    with context:
        pass


# Functions, and their arguments when all is well; those that would take long lack a file.
FUNCTIONS = {
    "pool": (functional.pool, {"x": X, "statistics": ["mean", "max"]}),
    "recalibrate": (
        functional.recalibrate,
        {"x": X, "scale": torch.ones(2, 8), "shift": torch.ones(2, 8), "residual": X, "relu": True},
    ),
    "norm": (
        spem.GatedBatchNorm2d,
        {"num_features": 8, "eps": 1e-5, "momentum": 0.1, "affine": True}
        | {"track_running_stats": True, "device": "cpu", "dtype": torch.float32, "gate": GATE},
    ),
    "call norm": (call_norm, {"x": X, "residual": X, "relu": True}),
    **{f"call {name}": (call_gate(name), {"x": X}) for name in sorted(GATES)},
    "gate_options": (gate_options, {"name": "se"}),
    "register": (register, {"name": "new", "gate": spem.SPEM}),
    "register_model": (register_model, {"name": "own", "build": build_network}),
    "auxiliary_loss": (gates.auxiliary_loss, {"model": GATED}),
    "mixing_ratios": (gates.mixing_ratios, {"model": GATED}),
    "record_gates": (lambda model: enter(gates.record_gates(model)), {"model": GATED}),
    "attach": (
        surgery.attach,
        {"model": PLAIN, "gate": "se", "at": "layer*.bn2", "init": "identity", "reduction": 4}
        | {"mask": [1, 1, 0], "dry_run": False, "optimizer": None, "channels": None}
        | {"example": torch.zeros(2, 3, 16, 16), "then": [], "version": "0.1.0"},
    ),
    "parameter_groups": (
        spem.parameter_groups,
        {"model": GATED, "lr": 0.1, "weight_decay": 0.0, "gate_lr": 0.1, "norm_weight_decay": 0.0},
    ),
    "attachment": (spem.attachment, {"model": ATTACHED}),
    "detach": (surgery.detach, {"model": GATED, "optimizer": None}),
    "load_backbone": (
        surgery.load_backbone,
        {"model": GATED, "state_dict": STATE, "ignore": ["fc.*"]},
    ),
    "convert_official": (
        surgery.convert_official,
        {"method": "eca", "state_dict": {"conv.weight": torch.ones(1, 1, 3)}},
    ),
    "deploy": (
        surgery.deploy,
        {"model": GATED, "constant_gates": None, "report": None, "fold_batchnorm": True}
        | {"example": torch.zeros(1, 3, 8, 8)},
    ),
    "config_of": (surgery.config_of, {"model": GATED}),
    "gate_report": (
        explain.gate_report,
        {"model": GATED, "batches": [(torch.zeros(2, 3, 8, 8), None)]},
    ),
    "compute_cams": (
        explain.compute_cams,
        {"model": GATED, "images": torch.zeros(2, 3, 8, 8), "method": "gradcam", "classes": 3}
        | {"layer": "layer1"},
    ),
    "check_cams": (
        explain.check_cams,
        {"model": GATED, "images": torch.zeros(2, 3, 8, 8), "method": "gradcam", "classes": 3}
        | {"layer": "layer1", "shuffled": GATED, "steps": 2, "seed": 0},
    ),
    "profile_gates": (
        explain.profile_gates,
        {
            "model": GATED,
            "batches": [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))],
            "classes": 2,
        },
    ),
    "use": (lambda name: enter(kernels.use(name)), {"name": "eager"}),
    "why_not": (kernels.why_not, {"name": "eager"}),
    "load_network": (load_network, {"folder": "resnet20-eca-cifar10"}),
    "load_weights": (load_weights, {"model": PLAIN, "source": "resnet20-eca-cifar10"}),
    "load_dataset": (
        load_dataset,
        {"name": "digits", "data_dir": "nowhere", "download": False, "validation": 0.1, "seed": 0}
        | {"image_size": 8, "on_bad_image": "raise"},
    ),
    "Batches": (
        lambda **options: [x.shape for x, _ in Batches(**options).in_order()],
        {"split": SPLIT, "batch_size": 2, "mean": [0.5] * 3, "std": [0.5] * 3, "crop": 1}
        | {"flip": True, "device": "cpu", "channels_last": True, "rank": 0, "world_size": 1}
        | {"trivial_augment": True, "random_erasing": 0.5},
    ),
    "prepare_image": (prepare_image, {"image": PICTURE, "size": (8, 8), "channels": 3}),
    "list_pictures": (list_pictures, {"paths": [PICTURE]}),
    "find_classifier": (find_classifier, {"model": PLAIN, "classes": 10}),
    "predict": (
        lambda **options: list(predict(**options)),
        {"model": Made(lambda: create_model("resnet8").eval()), "config": CONFIG}
        | {"pictures": [PICTURE], "features": True, "batch_size": 64},
    ),
    "load_recipe": (load_recipe, {"name_or_path": "digits", "seed": 3}),
    "load_study": (load_study, {"name_or_path": "quick", "small": True}),
    "fit": (
        fit,
        {"recipe": Recipe(data="nowhere", model="resnet8"), "model": PLAIN, "out": "out"}
        | {"resume": False, "overwrite": False},
    ),
    "report": (report, {"folder": "nowhere"}),
    "measure_gates": (
        measure_gates,
        {"model": "nowhere", "gates": ["se"], "at": "residual", "batch": 2, "size": 8}
        | {"channels_last": True, "device": "cpu", "threads": 1, "rounds": 2},
    ),
}


def attached_network():
    model = create_model("resnet8")
    surgery.attach(model, "se", reduction=4)
    return model


def draw(case):
    """Return the name of a function and its arguments, of which one or two may be wrong."""
    numbers = numbers_of(case)
    name = numbers.choice(list(FUNCTIONS))
    arguments = dict(FUNCTIONS[name][1])
    for key in numbers.choices(list(arguments), k=numbers.randint(1, 2)):
        pool = numbers.choices([VALUES, MAPS, OBJECTS], [6, 2, 2])[0]
        arguments[key] = numbers.choice(pool)
    return name, arguments


def run(name, arguments):
    values = {k: v.make() if isinstance(v, Made) else v for k, v in arguments.items()}
    if name == "attach" and callable(values["at"]) and not isinstance(values["at"], nn.Module):
        return  # a predicate, whose errors are its own
    words = ", ".join(f"{key}={shorten(value)}" for key, value in values.items())
    names = [*arguments, *map(shorten, values.values()), "gate", "input", "channels", "nowhere"]
    names += ["backbone", "network"]
    attempt(lambda: FUNCTIONS[name][0](**values), f"{name}: {words}", names)


@pytest.mark.parametrize("numbers", cases(100_000, 300))
def test_a_function_works_or_says_what_is_allowed(numbers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for case in numbers:
        run(*draw(case))
