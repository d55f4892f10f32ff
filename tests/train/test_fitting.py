"""What `fit` takes, refuses and leaves behind."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from runs import SMALL, Net, check_same, net, rows

import spem.train
from spem import create_model, kernels
from spem.data.batches import Split
from spem.data.dataset import Dataset
from spem.export.network import load_network
from spem.train import devices, setup
from spem.train.devices import keep_freed_memory
from spem.train.fitting import fit
from spem.train.folder import FILES
from spem.train.recipe_files import load_recipe

NOT_FITS = {"placement.json", "per_class.csv", "confusion.png", "mistakes.html"}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_the_folder_holds_what_was_promised():
    recipe = replace(SMALL, model="resnet8", gate="spem", gate_options={"alpha": 0.2})
    run = fit(recipe)
    found = {path.name for path in run.folder.iterdir()} - {".lock"}
    assert found == set(FILES) - NOT_FITS
    resolved = replace(recipe, image_size=8, mean=[0.5], std=[0.5])
    assert load_recipe(str(run.folder / "recipe.yaml")) == resolved
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    table = rows(run.folder)
    assert run.summary["final_test_top1"] == float(table[-1]["test_top1"])
    assert run.summary["best_test_top1"] == max(float(row["test_top1"]) for row in table)
    best = table[run.summary["best_validation_epoch"]]
    assert float(best["validation_top1"]) == max(float(row["validation_top1"]) for row in table)
    assert run.summary["test_top1_at_best_validation"] == float(best["test_top1"])
    assert run.summary["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert run.summary["seconds"] >= 2 * 1293 / run.summary["images_per_second"]
    config = load_network(run.folder)[1]
    assert (config["model"], config["gate"]) == ("resnet8", "spem")
    assert config["gate_options"] == {"alpha": 0.2}
    assert (config["image_size"], config["mean"], config["std"]) == ([8, 8], [0.5], [0.5])
    assert config["classes"] == list("0123456789")


def test_a_result_is_written_in_one_line():
    run = fit(SMALL, net(), out="run")
    reached = f"{run.summary['final_test_top1']:.4g}"
    assert repr(run) == f"Result('run', final_test_top1={reached}, Net)"


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        ({"warmup_epochs": 2.0}, "warmup_epochs is 2 of 2 epochs"),
        ({"freeze": "0*", "freeze_epochs": 3}, "freeze_epochs is 3 of 2 epochs: what '0*'"),
        ({"freeze": "0*", "freeze_epochs": 1, "warmup_epochs": 1.9}, None),
        ({"epochs": 1, "warmup_epochs": 1.0}, None),
    ],
)
def test_a_part_as_long_as_the_run_is_warned_of(keys, warned, capsys):
    recipe = replace(SMALL, epochs=2)
    digits = setup.load_data(recipe)
    setup.announce(replace(recipe, **keys), digits)
    said = capsys.readouterr().out
    assert warned in said if warned else "warning" not in said


def test_multiply_adds_are_those_of_convolutions_and_linear_layers():
    assert fit(SMALL, net()).summary["macs"] == 9 * (9 * 8) + 72 * 10


@pytest.mark.hard
def test_multiply_adds_are_a_number_under_forced_kernels_too():
    recipe = replace(SMALL, model="resnet8", gate="se", epochs=1)
    expected = fit(recipe).summary["macs"]
    with kernels.use("compiled"):
        run = fit(recipe)
    assert run.summary["macs"] == expected
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary


def test_fit_and_load_recipe_are_names_of_the_package():
    program = "import sys, spem.train as t; print('lightning_fabric' in sys.modules, t.fit)"
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed.startswith("False <function fit")
    assert spem.train.load_recipe("digits").model == "resnet20"
    assert spem.train.fit is fit
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        spem.train.fitt  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_without_a_validation_split_its_values_are_null():
    run = fit(replace(SMALL, validation=None), net())
    assert run.summary["best_validation_epoch"] is None
    assert run.summary["test_top1_at_best_validation"] is None
    assert rows(run.folder)[0]["validation_top1"] == ""


def test_below_six_classes_top5_is_empty(monkeypatch):
    split = Split(torch.randint(256, (60, 1, 8, 8)).to(torch.uint8), torch.arange(60) % 4)
    few = Dataset("few", split, split, split, classes=tuple("abcd"))
    monkeypatch.setattr(setup, "load_dataset", lambda *_, **__: few)
    table = rows(fit(SMALL, net(classes=4)).folder)
    assert {table[0][f"{part}_top5"] for part in ("train", "validation", "test")} == {""}


def test_a_model_of_the_users_own_is_trained_in_place_and_named():
    model = net()
    run = fit(replace(SMALL, epochs=10), model)
    assert run.model is model
    assert run.folder.name == "Net-plain-digits-0"
    assert run.summary["final_test_top1"] > 0.5
    with pytest.raises(ValueError, match="of your own"):
        load_network(run.folder)


def test_a_run_starts_from_stored_weights():
    first = fit(SMALL, net())
    second = fit(replace(SMALL, lr=1e-12, weights=str(first.folder)), Net())
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet14", {"gate": "spem", "mask": [1, 0, 0, 1, 0, 1], "alpha": 0.2}),
        ("preresnet8", {"gate": "se", "placement": "conv"}),
        ("resnet20", {"block": "bottleneck"}),
    ],
)
def test_the_recipe_of_a_given_model_builds_the_same_network_again(name, options):
    run = fit(replace(SMALL, epochs=1), create_model(name, in_channels=1, **options))
    again = fit(load_recipe(str(run.folder / "recipe.yaml")))
    shapes = [[(k, v.shape) for k, v in r.model.state_dict().items()] for r in (run, again)]
    assert shapes[0] == shapes[1]
    assert again.model.config == run.model.config


def test_compiled_training_is_the_same_training(monkeypatch):
    compiled, real = [], torch.compile

    def spied(*arguments, **options):
        compiled.append(arguments)
        return real(*arguments, **options | {"backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", spied)
    recipe = replace(SMALL, model="resnet8", gate="spem", epochs=1)
    plain = fit(recipe)
    assert not compiled
    run = fit(replace(recipe, compile=True))
    assert compiled
    assert run.model.state_dict().keys() == plain.model.state_dict().keys()
    torch.testing.assert_close(run.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_is_the_recipes(channels_last):
    model = create_model("resnet8", "spem", in_channels=1)
    run = fit(replace(SMALL, epochs=1, channels_last=channels_last), model)
    weight = model.get_parameter("layer1.0.conv2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert run.summary["final_test_top1"] > 0.05


def test_a_finished_run_is_returned_as_it_is(capsys):
    run = fit(SMALL, net(), out="run")
    files = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    again = fit(SMALL, Net(), out="run", resume=True)
    assert again.summary == run.summary
    check_same(run, again)
    assert "finished" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}


def test_a_folder_in_use_is_refused_and_can_be_overwritten():
    fit(SMALL, net(), out="run")
    with pytest.raises(FileExistsError, match="run exists"):
        fit(SMALL, net(), out="run")
    longer = replace(SMALL, epochs=3)
    with pytest.raises(ValueError, match="epochs"):
        fit(longer, net(), out="run", resume=True)
    assert len(rows(fit(longer, net(), out="run", overwrite=True).folder)) == 3
    with pytest.raises(ValueError, match="out"):
        fit(SMALL, net(), resume=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "16-mixed"}, "precision '16-mixed' is not possible on 'cpu'"),
        ({"device": "mps"}, "1 of 'mps' are needed, this machine has 0"),
        ({"data": "digit"}, "no folder digit, nor a data set"),
        ({"model": "resnett20"}, "unknown model"),
        ({"gate": "spme"}, "unknown gate"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean"),
        ({"batch_size": 1292, "devices": 2}, "leaves 1 images"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(
    changes, sentence, tmp_path
):
    with pytest.raises(ValueError, match=sentence):
        fit(replace(SMALL, **{"model": "resnet8"} | changes))
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_other_outputs_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 7\) for one image, digits needs \(1, 10\)"):
        fit(SMALL, net(classes=7))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("library", "settings"), [("glibc", [(-3, 2**30), (-1, 2**31 - 1)]), ("", [])]
)
def test_freed_memory_is_kept_where_the_library_is_glibc(monkeypatch, library, settings):
    asked = []
    libc = SimpleNamespace(mallopt=lambda *setting: asked.append(setting))
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: libc)
    keep_freed_memory()
    assert asked == settings


def test_a_long_run_uses_compiled_kernels_and_converges_like_an_eager_one(monkeypatch):
    recipe = replace(
        SMALL, model="resnet8", gate="spem", epochs=4, batch_size=50, lr=0.1, channels_last=True
    )
    short = fit(recipe, out="short")
    monkeypatch.setattr(setup, "_WORTH_KERNELS", 0)
    long = fit(recipe, out="long")
    assert (short.summary["kernels"], long.summary["kernels"]) == ("eager", "compiled")
    first, last = ([row["train_loss"] for row in rows(run.folder)] for run in (short, long))
    assert float(first[0]) == pytest.approx(float(last[0]), rel=1e-4)
    assert float(first[-1]) == pytest.approx(float(last[-1]), rel=0.03)
    assert float(last[-1]) < 0.7 * float(last[0])


def test_without_a_compiler_a_long_run_is_eager_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(setup, "_WORTH_KERNELS", 0)
    missing = {"compiled": "compiled: no g++"}.get
    monkeypatch.setattr(kernels, "why_not", missing)
    run = fit(replace(SMALL, model="resnet8"))
    assert run.summary["kernels"] == "eager"
    expected = "compiled: no g++; falling back to eager PyTorch"
    assert [record.getMessage() for record in caplog.records] == [expected]
