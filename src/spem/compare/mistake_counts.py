"""Count which classes the networks of a comparison take for which others."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spem._files import write_text
from spem._messages import describe_error, say
from spem.compare.mistakes import FILE, read_mistakes
from spem.compare.planned import PlannedRun
from spem.compare.run_data import RunData
from spem.data.batches import Batches
from spem.data.splits import Dataset
from spem.export.network import load_network
from spem.models.user_files import import_files
from spem.train.devices import create_fabric
from spem.train.metrics import answer


def count_mistakes(runs: Sequence[PlannedRun], folder: Path) -> None:
    """Count the mistakes of the runs whose networks are still there and that have no count yet.

    Args:
        runs: finished ones.
        folder: of the comparison.
    """
    known = read_mistakes(folder)
    networks = [run for run in runs if (run.folder_in(folder) / "model.safetensors").exists()]
    pending = [run for run in networks if run.key not in known]
    if not pending:
        return
    say(f"counting the mistakes of {len(pending)} runs")
    try:
        for own in _count_all(pending, folder):
            known[own["key"]] = own
    except (ValueError, OSError) as error:
        say(f"the mistakes of the other runs are not counted: {describe_error(error)}")
    write_text(folder / FILE, "".join(json.dumps(own) + "\n" for own in known.values()))


def _count_all(runs: Sequence[PlannedRun], folder: Path) -> Iterator[dict[str, Any]]:
    data = RunData(folder)
    for run in runs:
        yield {"key": run.key} | _count(run, run.folder_in(folder), data.load(run))


def _count(run: PlannedRun, folder: Path, dataset: Dataset) -> dict[str, Any]:
    import_files(run.recipe.import_)
    model, config = load_network(folder)
    device = create_fabric(run.recipe).device
    batches = Batches(dataset.test, mean=config["mean"], std=config["std"], device=device)
    answers = answer(model.to(device), batches)
    predicted = torch.cat([logits.argmax(1).cpu() for logits, _ in answers])
    labels = dataset.test.labels
    return {
        "classes": list(dataset.classes),
        "images": labels.bincount(minlength=len(dataset.classes)).tolist(),
        "confused": _list_confused(labels, predicted),
    }


def _list_confused(labels: Tensor, predicted: Tensor) -> list[list[int]]:
    wrong = torch.stack([labels, predicted])[:, labels != predicted]
    pairs, counts = wrong.unique(dim=1, return_counts=True)
    return torch.cat([pairs, counts[None]]).T.tolist()
