"""Hand-made records of comparisons."""

import json
import random
from dataclasses import asdict
from xml.etree import ElementTree

import yaml

from spem.report.figures import figures
from spem.report.tables import read_contents
from spem.train.identity import FREE_KEYS
from spem.train.recipe import Recipe

SVG = "{http://www.w3.org/2000/svg}"
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "spem": "0.1.0", "lightning-fabric": "2.6.6"}


def record(
    gate,
    seed,
    accuracy,
    *,
    model="resnet20",
    data="cifar10",
    overrides="",
    against="none",
    best=None,
    gates=0,
    options=None,
    label=None,
    epochs=5,
    validation=True,
    **recipe,
):
    """The record of a run whose test accuracy climbs to `accuracy`, a fraction.

    It has `gates` gates that learn λ. A row named as `against` is a baseline.
    """
    label = label or gate
    name = None if gate == "none" else gate
    settings = Recipe(
        model=model, gate=name, data=data, seed=seed, gate_options=options or {}, epochs=epochs
    )
    return {
        "key": f"{model}-{data}-{label}-{overrides}-{seed}",
        "gate": label,
        "model": model,
        "data": data,
        "overrides": overrides,
        "against": None if against == label else against,
        "seed": seed,
        "recipe": {k: v for k, v in asdict(settings).items() if k not in FREE_KEYS} | recipe,
        "summary": _summary(seed, accuracy, best or accuracy, epochs, validation),
        "history": _history(seed, accuracy, epochs, gates, validation),
        "error": None,
    }


def _summary(seed, accuracy, best, epochs, validation):
    return {
        "final_test_top1": accuracy,
        "best_validation_epoch": epochs - 1 if validation else None,
        "test_top1_at_best_validation": accuracy if validation else None,
        "best_test_top1": best,
        "parameters": 272474,
        "macs": 40813184,
        "images_per_second": 300.0,
        "seed": seed,
        "device": "x86_64 AVX512",
        "kernels": "eager",
        "versions": VERSIONS,
        "seconds": 100.0,
    }


def _history(seed, accuracy, epochs, gates, validation):
    draw = random.Random(seed)
    climb = [accuracy * (1 - 0.5 ** (e + 1)) for e in range(epochs - 1)] + [accuracy]
    history = {"epoch": list(range(epochs)), "auxiliary_loss": [0.0] * epochs}
    for split in ("train", "validation", "test"):
        known = split != "validation" or validation
        history[f"{split}_loss"] = [2 * (1 - value) if known else None for value in climb]
        history[f"{split}_top1"] = [value if known else None for value in climb]
        history[f"{split}_top5"] = [min(1.0, value + 0.1) if known else None for value in climb]
    history |= {key: [1.0] * epochs for key in ("learning_rate", "images_per_second", "seconds")}
    for index in range(gates):
        name = f"mixing.layer{1 + 3 * index // gates}.{index}.bn2.gate"
        history[name] = [draw.random() for _ in range(epochs)]
    return history


def failure(gate, seed, error, **labels):
    """The record of a run that came to no result."""
    return record(gate, seed, 0.5, **labels) | {"summary": None, "history": None, "error": error}


def cost(gate, speed, *, model="resnet20", data="cifar10", overrides="", memory=2**20):
    """A line of `costs.jsonl` of a network that trains `speed` images a second; the first has 300.

    Inference is ten times as fast.
    """
    ratio = {"median": 300 / speed, "low": 0.9 * 300 / speed, "high": 1.1 * 300 / speed}
    train = {"median": speed, "low": 0.9 * speed, "high": 1.1 * speed}
    return {
        "model": model,
        "data": data,
        "gate": gate,
        "overrides": overrides,
        "train": train,
        "train_ratio": ratio,
        "inference": {key: 10 * value for key, value in train.items()},
        "inference_ratio": ratio,
        "memory": memory,
        "rounds": 20,
        "batch_size": 128,
        "threads": 2,
        "device": "AMD EPYC, 2 cores",
        "kernels": "eager",
        "torch": "2.13.0",
        "spem": "0.1.0",
    }


def write(folder, records, costs=(), study=None):
    """Write the files of a comparison, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    if costs:
        (folder / "costs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in costs))
    if study is not None:
        (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def comparison(seeds=3, groups=("cifar10", "cifar100")):
    """Records of four gates on each data set, one of which learns λ."""
    draw = random.Random(0)
    level = {"none": 0.91, "se": 0.913, "eca": 0.912, "spem": 0.92}
    return [
        record(
            gate,
            seed,
            round(base + draw.gauss(0, 0.003) - 0.2 * (data == "cifar100"), 4),
            data=data,
            gates=9 * (gate == "spem"),
        )
        for seed in range(seeds)
        for data in groups
        for gate, base in level.items()
    ]


def groups_of(folder, records, costs=()):
    return read_contents(write(folder, records, costs)).groups


def kinds(group):
    return [picture.name.rsplit("-", 1)[-1] for picture in figures(group)]


def texts(svg):
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def rows_of(count, seeds=2):
    return [
        record(f"gate {i}", seed, 0.9 + i / 1000, against="gate 0")
        for i in range(count)
        for seed in range(seeds)
    ]
