"""Gates and networks of the user's own files: trained, read again and compared."""

import json
import pickle
import sys
from pathlib import Path

import pytest
from PIL import Image

import spem
from spem.cli import main
from spem.compare import costs, gate_costs
from spem.compare.records import Ledger
from spem.compare.study import load_study
from spem.compare.timing import measure_apart
from spem.export import load_network
from spem.models.registry import MODELS
from spem.models.user_files import import_files, pin_files
from spem.train import fit
from spem.train.devices import create_fabric
from spem.train.recipe_files import load_recipe
from spem.train.resolving import resolve
from spem.train.setup import prepare

OWN = '''
import torch
from torch import nn
import spem


@spem.register("{gate}")
class Scale(spem.Gate):
    """Multiplies by a number that is learned."""

    statistics = ("mean",)

    def __init__(self, channels, *, init="paper"):
        super().__init__(channels, init)
        self.weight = nn.Parameter(torch.full((channels,), 1.0 if init == "identity" else 0.5))

    def excite(self, pooled):
        return self.weight.expand_as(pooled.mean)


@spem.register_model("{model}")
def build(num_classes, in_channels):
    """A convolution, a norm and a classifier."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, num_classes),
    )
'''
SHORT = ["--data", "digits", "--epochs", "1", "--threads", "1", "--device", "cpu", "--no-progress"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file that registers the gate `scale` and the network `tiny`; forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spem.models.user_files._run", [])
    before = [(registry, dict(registry)) for registry in (spem.GATES, MODELS)]
    file = tmp_path / "my_gates.py"
    file.write_text(OWN.format(gate="scale", model="tiny"))
    yield file
    for registry, content in before:
        registry.clear()
        registry.update(content)
    forget()


def forget():
    """Let this process be one that has imported nothing."""
    spem.GATES.pop("scale", None)
    MODELS.pop("tiny", None)
    for name in [name for name in sys.modules if name.startswith("spem_import_")]:
        del sys.modules[name]


def run(*words):
    try:
        return main([*map(str, words)])
    except SystemExit as exit_:
        return exit_.code


def test_every_command_knows_an_imported_gate_and_network(own, capsys):
    gated = ["--model", "tiny", "--gate", "scale", "--placement", "1", "--init", "identity"]
    assert run("train", "--import", own, *gated, *SHORT, "--out", "run") == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["model"], config["gate"], config["placement"]) == ("tiny", "scale", "1")
    assert config["gate_options"] == {"init": "identity"}
    assert [*config["import"]] == ["my_gates.py"]
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["import"] == config["import"]
    forget()
    assert run("evaluate", "run") == 2
    assert "was trained with --import my_gates.py" in capsys.readouterr().err
    assert "scale" not in spem.GATES
    assert run("evaluate", "run", "--import", own) == 0
    assert run("gate-report", "run", "--import", own) == 0
    Image.new("L", (8, 8), 99).save("digit.png")
    assert run("predict", "run", "digit.png", "--import", own) == 0
    assert run("gates", "--long", "--import", own) == 0
    printed = capsys.readouterr().out
    assert "Multiplies by a number" in printed
    model, _ = load_network("run")
    assert type(model[1].gate).__name__ == "Scale"


def test_a_comparison_trains_and_reports_an_imported_gate(own):
    words = ["--gates", "none", "scale", "--model", "resnet8", "--seeds", "1", *SHORT]
    assert run("compare", *words, "--import", own, "--no-costs", "--out", "compared") == 0
    records = Ledger(Path("compared")).records
    assert [record["gate"] for record in records.values()] == ["none", "scale"]
    assert all(record["summary"]["import"] for record in records.values())
    forget()
    assert run("report", "compared") == 0  # which reads records alone
    page = Path("compared/report.md").read_text()
    assert f"--import {own}" in page


@pytest.mark.hard
def test_bench_tells_the_process_that_measures_memory_of_an_imported_gate(own, monkeypatch):
    found = []

    def measure(builds, recipe, backend, rounds):
        found.append(measure_apart(costs._measure_step_memory, builds[-1], recipe, backend))
        return [{"gate": None}] * len(builds)

    monkeypatch.setattr(gate_costs, "fastest_kernels", lambda device: "eager")
    monkeypatch.setattr(gate_costs, "measure_networks", measure)
    import_files([str(own)])
    gate_costs.measure_gates("resnet8", ["scale"], size=8, batch=2, threads=1, device="cpu")
    assert len(found) == 1


@pytest.mark.hard
def test_results_of_a_file_that_changed_are_not_taken_for_those_of_the_new_one(own, capsys):
    words = ["--gates", "scale", "--model", "resnet8", "--seeds", "1", *SHORT, "--no-costs"]
    assert run("compare", *words, "--import", own, "--out", "compared") == 0
    text = own.read_text()
    own.write_text(text.replace("0.5", "0.25"))
    for gone in ("nothing", "compared/records.jsonl"):
        Path(gone).unlink(missing_ok=True)  # the run's folder has the sums as well
        assert run("compare", *words, "--import", own, "--out", "compared") == 2
        message = "my_gates.py has changed since compared has results of 'scale' with it"
        assert message in capsys.readouterr().err
    own.write_text(text)
    assert run("compare", *words, "--import", own, "--out", "compared") == 0


def test_files_of_one_name_must_be_copies(own, tmp_path):
    copy, other = tmp_path / "a" / own.name, tmp_path / "b" / own.name
    for file, more in ((copy, ""), (other, "# other")):
        file.parent.mkdir()
        file.write_text(own.read_text() + more)
    import_files([str(own), str(copy)])
    with pytest.raises(ValueError, match=r"my_gates\.py are different files of one name"):
        import_files([str(own), str(other)])


def test_a_study_names_its_files(own):
    study = f"import: [{own}]\ngates: [none, scale]\nmodels: resnet8\nseeds: 1\n"
    Path("study.yaml").write_text(study)
    plan = load_study("study.yaml").plan()
    assert [planned.recipe.gate for planned in plan] == [None, "scale"]
    assert plan[1].recipe.gate_options == {"init": "identity"}  # known by now
    assert plan[1].recipe.import_ == pin_files([str(own)])  # for the processes that train


def test_a_run_goes_on_with_the_file_that_it_began_with_and_with_no_other(own, capsys):
    files = {"import": [str(own)], "progress": False}
    recipe = load_recipe("digits", model="resnet8", gate="scale", epochs=1, device="cpu", **files)
    folder = fit(recipe, out="run").folder
    (folder / "summary.json").unlink()
    forget()
    assert run("train", "--resume", "run") == 2
    assert "the run in run needs --import my_gates.py" in capsys.readouterr().err
    assert "scale" not in spem.GATES
    text = own.read_text()
    own.write_text(text + "# other\n")
    assert run("train", "--resume", "run", "--import", own) == 2
    assert "my_gates.py has changed since the run in run began" in capsys.readouterr().err
    own.write_text(text)
    assert run("train", "--resume", "run", "--import", own) == 0


def test_a_process_that_receives_a_job_runs_its_files_first(own):
    settings = {"import": [str(own)], "threads": 1, "device": "cpu"}
    recipe = resolve(load_recipe("digits", model="tiny", gate="scale", placement="1", **settings))
    sent = pickle.dumps(prepare(create_fabric(recipe), recipe))
    forget()
    job = pickle.loads(sent)
    assert job.recipe == recipe
    assert type(job.model[1].gate).__name__ == "Scale"
    assert "scale" in spem.GATES


def test_files_that_cannot_be_imported(own, capsys):
    cases = {
        "nothing.py": (None, "there is no file nothing.py to import"),
        "text.txt": ("x = 1", "text.txt cannot be imported: its name must end in .py"),
        "wrong.py": ("1 +", "wrong.py cannot be imported: SyntaxError"),
        "raises.py": (
            "import spem\nraise KeyError('x')",
            "raises.py cannot be imported: KeyError: 'x'",
        ),
        "leaves.py": ("raise SystemExit(3)", "leaves.py cannot be imported: SystemExit: 3"),
    }
    for name, (text, message) in cases.items():
        if text is not None:
            Path(name).write_text(text)
        assert run("gates", "--import", name) == 2
        assert message in capsys.readouterr().err


def test_what_a_failing_file_registered_is_forgotten(own):
    own.write_text(own.read_text() + "\nraise ValueError('late')\n")
    with pytest.raises(ValueError, match=r"my_gates\.py cannot be imported: ValueError: late"):
        import_files([str(own)])
    assert "scale" not in spem.GATES
    assert "tiny" not in MODELS


def test_a_file_with_another_sum_is_not_run(own):
    (pinned,) = pin_files([str(own)])
    own.write_text(own.read_text() + "# other\n")
    with pytest.raises(ValueError, match=r"my_gates\.py has changed: its SHA-256 sum was"):
        import_files([pinned])
    assert "scale" not in spem.GATES


def test_the_names_of_networks(own):
    with pytest.raises(ValueError, match="the model name 'resnet20' is taken"):
        spem.register_model("resnet20")
    import_files([str(own)])
    import_files([str(own)])  # once is enough
    with pytest.raises(ValueError, match="the model name 'tiny' is taken"):
        spem.register_model("tiny")
    with pytest.raises(ValueError, match="block is 'basic', but 'tiny' has no choice of blocks"):
        spem.create_model("tiny", block="basic")
    with pytest.raises(ValueError, match="mask given without a gate"):
        spem.create_model("tiny", mask=[1])
    with pytest.raises(ValueError, match="must take the keywords num_classes and in_channels"):
        spem.register_model("short")(lambda num_classes: 3)
    spem.register_model("wrong")(lambda num_classes, in_channels: 3)
    with pytest.raises(ValueError, match="the model 'wrong' is 3, must be a torch"):
        spem.create_model("wrong")


@pytest.mark.parametrize("name", ["", "none", "a/b", "..", "a b", "-x", "a,b", "x\n", None, 5])
def test_names_that_no_command_or_folder_can_have(name):
    for register in (spem.register, spem.register_model):
        with pytest.raises(ValueError, match="must be made of letters"):
            register(name)
