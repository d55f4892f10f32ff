"""The commands that apply trained networks to images: evaluate and predict."""

import sys
from pathlib import Path

from spem._messages import printable, say
from spem.cli.trained import Trained, TrainedRuns
from spem.compare.tables import show

_FIGURES = {
    "test data": "test data",
    "images": "images",
    "loss": "loss",
    "top1": "top1",
    "top5": "top5",
    "balanced_accuracy": "balanced accuracy (mean recall of the classes)",
    "calibration_error": "expected calibration error",
}


def evaluate(runs: TrainedRuns, *, out: str | None = None) -> None:
    """Measure trained networks on the test images of a data set, side by side.

    Writes per_class.csv, confusion.png and mistakes.html, a page with the mistakes of which the
    network is surest, into the folder of each run.

    Args:
        runs: the networks and their data.
        out: folder for these files, with one folder per run if there are several; if not given:
            that of each run, and none for bundled networks.
    """
    from spem.train.assessment import assess, write_assessment

    folders, done = runs.choose_folders(out), []
    for name, trained in zip(folders, runs, strict=True):
        dataset = trained.load_data()
        found = assess(trained.model, trained.batches(dataset.test), dataset.classes)
        kept = dataset._replace(train=dataset.test, validation=None)  # the rest may go
        done.append((name, found, kept))
    shown = [{"test data": dataset.name} | found.figures for _, found, dataset in done]
    show(["", *folders], ((words, *(own[key] for own in shown)) for key, words in _FIGURES.items()))
    for name, found, dataset in done:
        if folder := folders[name]:
            write_assessment(folder, found, dataset, f"{name} on {dataset.name}")
    for name, folder in folders.items():
        where = f"in {folder}" if folder else f"of {name}: give --out FOLDER to get them"
        say(f"per_class.csv, confusion.png, mistakes.html {where}")


def predict(
    trained: Trained,
    images: list[str],
    *,
    top: int = 5,
    csv: str | None = None,
    logits: bool = False,
    features: bool = False,
) -> int:
    """Classify pictures: the most probable classes of each, with their probabilities.

    A picture that cannot be read is named at the end, and the exit code is 1.

    Args:
        trained: the network.
        images: picture files, and folders, which stand for all pictures in them and below.
        top: number of classes shown for each picture.
        csv: write a CSV file with the probabilities of all classes, one row per picture, instead of
            the table.
        logits: write logits to the CSV file instead of probabilities.
        features: write to the CSV file what the last linear layer gets instead of probabilities.
    """
    from spem.train import prediction

    if top < 1:
        raise ValueError(f"top is {top}, must be at least 1")
    if (logits or features) and csv is None:
        raise ValueError("--logits and --features choose the columns of a file: give --csv FILE")
    if logits and features:
        raise ValueError("--logits and --features exclude each other")
    pictures, classes = prediction.list_pictures(images), trained.config["classes"]
    batches = prediction.predict(trained.model, trained.config, pictures, features=features)
    if csv is not None:
        kind = "logit" if logits else "feature" if features else "probability"
        count, unreadable = prediction.write_predictions(Path(csv), batches, kind, classes)
        say(f"{count:,} pictures: {csv}")
    else:
        rows, unreadable = prediction.rank(batches, classes, top)
        if rows:
            show(["picture", "class", "probability"], rows)
    for sentence in unreadable:
        print(printable(f"spem: not classified: {sentence}"), file=sys.stderr)
    return int(bool(unreadable))
