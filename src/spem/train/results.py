"""The files that a finished run leaves in its folder: network, curves, summary."""

import json
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spem import kernels
from spem._files import atomically, write_text
from spem.export.network import save_network
from spem.models.user_files import sums_by_name
from spem.surgery.config import config_of
from spem.train.run import Run
from spem.train.setup import Job

# The keys of a recipe that say what a network is.
MODEL_KEYS = ("model", "block", "gate", "gate_options", "placement", "mask")


def network_config(model: nn.Module) -> dict[str, Any]:
    """Return the config of a network of `create_model`, or None for each key of any other's."""
    config = config_of(model)
    return dict.fromkeys(MODEL_KEYS) | {"gate_options": {}} if config is None else config.to_json()


def write_results(run: Run) -> None:
    """Write the network, the curves and the summary of a finished run into its folder."""
    folder = run.folder
    save_network(folder, run.stored, _run_config(run.job))
    draw_curves(folder / "curves.png", run.history, folder.name)
    # The summary comes last, because a folder with a summary counts as finished.
    write_summary(folder, _summarise(run))


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`, which marks a folder as that of a finished run."""
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _run_config(job: Job) -> dict[str, Any]:
    recipe, dataset = job.recipe, job.dataset
    return {
        **network_config(job.model),
        "classes": list(dataset.classes),
        "data": recipe.data,
        "image_size": list(dataset.train.images.shape[2:]),
        "mean": recipe.mean,
        "std": recipe.std,
        # Names and sums, not paths: nothing is imported because a folder names it.
        **({"import": sums_by_name(recipe.import_)} if recipe.import_ else {}),
    }


def _summarise(run: Run) -> dict[str, Any]:
    rows, best = run.history, None
    if rows[0]["validation_top1"] is not None:
        best = max(rows, key=lambda row: (row["validation_top1"], -row["validation_loss"]))
    device = run.fabric.device
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "final_test_top1": rows[-1]["test_top1"],
        "best_validation_epoch": best and best["epoch"],
        "test_top1_at_best_validation": best and best["test_top1"],
        "best_test_top1": max(row["test_top1"] for row in rows),
        "best_test_top1_is": "the paper's way of reporting, chosen on the test images: no estimate",
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "macs": run.job.macs,
        "images_per_second": statistics.harmonic_mean(row["images_per_second"] for row in rows),
        "seed": run.recipe.seed,
        "threads": run.recipe.threads,
        "precision": run.recipe.precision,
        "import": sums_by_name(run.recipe.import_),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        # The backend that served the feature maps: results of one backend repeat bit for bit.
        "kernels": kernels.chosen(torch.empty(1, 1, 1, 1, device=device)).name,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "spem", "lightning-fabric")},
        "seconds": sum(row["seconds"] for row in rows),
    }


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draw loss and top-1 accuracy over the epochs.

    Args:
        path: the PNG file.
        rows: one a finished epoch, as in `metrics.csv`.
        title: stands above the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    left.set_yscale("log")
    epochs = [row["epoch"] for row in rows]
    for axes, key, label in ((left, "loss", "cross-entropy"), (right, "top1", "top-1 accuracy")):
        for split, color in (("train", "C7"), ("validation", "C0"), ("test", "C1")):
            if rows[0][f"{split}_{key}"] is not None:
                values = [row[f"{split}_{key}"] for row in rows]
                axes.plot(epochs, values, f"{color}.-", markersize=4, label=split)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")
