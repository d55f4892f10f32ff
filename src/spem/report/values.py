"""The numbers of a report as rows of a CSV file, one for each network."""

from typing import Any

from spem.report.tables import Contents, Group


def list_values(contents: Contents) -> list[dict[str, Any]]:
    """Return one row for each network of a report, by the names of the columns.

    Accuracies are in percent and differences in points, with their 95 % intervals; `runs_are` and
    `test` say whether the runs are of seeds or of folds, which share training images, and which
    test of a difference that calls for; `p` has Holm's correction.
    """
    return [_list_row(group, row) for group in contents.groups for row in group.rows]


def _list_row(group: Group, row: str) -> dict[str, Any]:
    accuracy, cost = group.accuracy[row], group.costs.get(row)
    baseline, difference, p, verdict = group.compared[row]
    repeats = group.repeats
    found = {
        "model": group.model,
        "data": group.data,
        "network": row,
        "runs_are": "folds that share training images" if repeats.ratio else "seeds",
        "n": accuracy.n,
        "test_top1": accuracy.mean,
        "deviation": accuracy.deviation,
        "low": accuracy.low,
        "high": accuracy.high,
        "baseline": baseline,
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "test": None if p is None else repeats.test,
        "p": p,
        "verdict": verdict,
        "parameters": group.rows[row][0]["summary"]["parameters"],
        "macs": group.rows[row][0]["summary"]["macs"],
        "training_time": cost and cost["train_ratio"]["median"],
        "inference_time": cost and cost["inference_ratio"]["median"],
    }
    return {key: round(v, 6) if isinstance(v, float) else v for key, v in found.items()}
