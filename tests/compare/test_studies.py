"""Every shipped study, from the command to the page, in a form of about a minute."""

import pytest

from spem.cli import main
from spem.compare.records import Ledger
from spem.compare.study import load_study, study_names

# ResNet-8 has too few channels for one of the methods of `paper`, and `backbones` is about others.
OWN_MODELS = ("paper", "backbones")


# The others take minutes: `make test-hard` runs them. Those of photographs have tests of their own.
OTHERS = [name for name in study_names() if name not in ("quick", "finetune", "imagenet-attention")]
NAMES = ["quick", *(pytest.param(name, marks=pytest.mark.hard) for name in OTHERS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_runs_and_reports(tmp_path, name):
    model = [] if name in OWN_MODELS else ["--model", "resnet8"]
    words = ["--study", name, "--small", *model, "--seeds", "1", "--epochs", "1", "--threads", "1"]
    # Few images to train on: what takes time here is the number of runs.
    words += ["--validation", "0.9", "--device", "cpu"]
    words += ["--no-progress", "--no-costs", "--out", str(tmp_path)]
    assert main(["compare", *words]) == 0
    records = Ledger(tmp_path).records.values()
    assert len(records) == len({run.row + run.model for run in load_study(name, True).plan()})
    assert all(record["summary"] for record in records)
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert load_study(name, True).title in page
