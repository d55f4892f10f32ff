"""The files that a finished run leaves in its folder: network, curves, summary."""

import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spem import kernels
from spem._files import atomically
from spem._messages import printable
from spem.data.splits import Dataset
from spem.export.network import save_network
from spem.models.user_files import sums_by_name
from spem.surgery.config import config_of
from spem.train.folder import sums_of_derived
from spem.train.identity import identity
from spem.train.run import Run
from spem.train.setup import Job
from spem.train.summary import write_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The keys of a recipe that say what a network is.
MODEL_KEYS = ("model", "block", "gate", "gate_options", "placement", "at", "mask")
MODEL_KEYS += ("dropout", "drop_path")


def network_config(model: nn.Module) -> dict[str, Any]:
    """Return the config of a network of `create_model`, or None for each key of any other's."""
    config = config_of(model)
    return dict.fromkeys(MODEL_KEYS) | {"gate_options": {}} if config is None else config.to_json()


def write_results(run: Run) -> None:
    """Write the network, the curves and the summary of a finished run into its folder."""
    folder = run.folder
    run.write_metrics()  # a process that died may have saved the checkpoint alone
    save_network(folder, run.stored, _run_config(run.job))
    draw_curves(folder / "curves.png", run.history, folder.name, run.recipe.loss)
    # The summary comes last, because a folder with a summary counts as finished.
    write_summary(folder, _summarise(run) | {"files": sums_of_derived(folder)})


def _run_config(job: Job) -> dict[str, Any]:
    recipe, dataset = job.recipe, job.dataset
    return {
        **network_config(job.model),
        "identity": identity(recipe),
        "classes": list(dataset.classes),
        "data": recipe.data,
        "image_size": list(dataset.train.images.shape[2:]),
        **{k: v for k in ("interpolation", "crop_ratio") if (v := getattr(recipe, k)) is not None},
        "mean": recipe.mean,
        "std": recipe.std,
        # Names and sums, not paths: nothing is imported because a folder names it.
        **({"import": sums_by_name(recipe.import_)} if recipe.import_ else {}),
    }


def _summarise(run: Run) -> dict[str, Any]:
    recipe, rows, best = run.recipe, run.history, find_best(run.history)
    device = run.fabric.device
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "final_test_top1": rows[-1]["test_top1"],
        "best_validation_epoch": best and best["epoch"],  # from 0, as in metrics.csv
        **({"stopped_early": len(rows) < recipe.epochs} if recipe.patience else {}),
        "test_top1_at_best_validation": best and best["test_top1"],
        "best_test_top1": max(row["test_top1"] for row in rows),
        "best_test_top1_is": "the paper's way of reporting, chosen on the test images: no estimate",
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "macs": run.job.macs,
        "images_per_second": statistics.harmonic_mean(row["images_per_second"] for row in rows),
        "seed": recipe.seed,
        "images": _count_images(run.job.dataset),
        **({"images_sum": run.images_sum} if run.images_sum else {}),
        "identity": identity(recipe),
        "threads": recipe.threads,
        "precision": recipe.precision,
        "import": sums_by_name(recipe.import_),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        # The backend that served the feature maps: results of one backend repeat bit for bit.
        "kernels": kernels.chosen(torch.empty(1, 1, 1, 1, device=device)).name,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "spem", "lightning-fabric")},
        "seconds": sum(row["seconds"] for row in rows),
    }


def _count_images(dataset: Dataset) -> dict[str, int]:
    """Return the number of images of each split, by its name."""
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return {name: len(split.labels) for name, split in splits.items() if split is not None}


def find_best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row of the best epoch by validation; None without validation images.

    Of equal accuracies the one with the lower loss counts.

    Args:
        rows: one a finished epoch, as in `metrics.csv`.
    """
    if rows[0]["validation_top1"] is None:
        return None
    return max(rows, key=lambda row: (row["validation_top1"], -row["validation_loss"]))


def draw_curves(path: Path, rows: list[dict[str, Any]], title: str, loss: str = "ce") -> None:
    """Draw loss and top-1 accuracy over the epochs, counted from 1, and mark the best epoch.

    Args:
        path: the PNG file.
        rows: one a finished epoch, as in `metrics.csv`.
        title: stands above the picture, as it is.
        loss: of the recipe; with bce, training has another loss than validation and test.
    """
    from matplotlib.figure import Figure

    # One panel above the other, so that the text can be read on a phone.
    figure = Figure(figsize=(6, 6.6), dpi=150, layout="constrained")
    figure.suptitle(printable(title), parse_math=False, wrap=True)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _plot_splits(upper, rows, "loss", 1)
    _plot_splits(lower, rows, "top1", 100)
    losses = [value for line in upper.lines for value in line.get_ydata()]
    label = "cross-entropy" if loss == "ce" else "cross-entropy (train: binary)"
    upper.set(ylabel=label, yscale=_choose_scale(losses))
    lower.set(ylabel="top-1 accuracy, %", xlabel="epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    if best := find_best(rows):
        for axes in (upper, lower):
            axes.axvline(best["epoch"] + 1, color="0.3", linewidth=1, linestyle=":", zorder=1)
        label = f"best epoch by validation: {best['epoch'] + 1}"
        upper.plot([], [], color="0.3", linewidth=1, linestyle=":", label=label)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")


def _plot_splits(axes: "Axes", rows: list[dict[str, Any]], key: str, factor: float) -> None:
    """Plot a column of each split; they differ by line and marker, too, not by colour alone."""
    epochs = [row["epoch"] + 1 for row in rows]
    for split, style in (("train", "C7--^"), ("validation", "C0-o"), ("test", "C1-.s")):
        if rows[0][f"{split}_{key}"] is not None:
            values = [factor * row[f"{split}_{key}"] for row in rows]
            every = max(1, len(rows) // 15)
            axes.plot(epochs, values, style, markersize=4, markevery=every, label=split)
    axes.grid(alpha=0.3)


def _choose_scale(values: list[float]) -> str:
    """Return "log" for values that span two decades, else "linear"."""
    return "log" if 0 < 100 * min(values) <= max(values) else "linear"
