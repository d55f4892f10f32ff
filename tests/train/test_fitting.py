"""What `fit` takes, refuses and leaves behind."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from runs import SMALL, Net, check_same, net, rows

import spem.train
from spem import create_model, kernels
from spem.data.batches import Split, measure_statistics
from spem.data.dataset import Dataset, load_dataset
from spem.export.network import load_network
from spem.train import devices, setup
from spem.train import folder as folders
from spem.train.devices import keep_freed_memory
from spem.train.fitting import fit, resolve
from spem.train.folder import FILES
from spem.train.recipe import load_recipe

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


def test_multiply_adds_are_those_of_convolutions_and_linear_layers():
    assert fit(SMALL, net()).summary["macs"] == 9 * (9 * 8) + 72 * 10


def test_multiply_adds_are_a_number_under_forced_kernels_too():
    recipe = replace(SMALL, model="resnet8", gate="se", epochs=1)
    expected = fit(recipe).summary["macs"]
    with kernels.use("compiled"):
        run = fit(recipe)
    assert run.summary["macs"] == expected
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary


def test_threads_that_the_recipe_leaves_open_are_those_of_the_process():
    used, model = [], net()
    model.before = lambda: used.append(torch.get_num_threads())
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run = fit(replace(SMALL, epochs=1, threads=None), model)
    finally:
        torch.set_num_threads(before)
    assert set(used[1:]) == {3}
    assert run.summary["threads"] == 3
    assert load_recipe(str(run.folder / "recipe.yaml")).threads is None


@pytest.mark.parametrize(("processes", "threads"), [(1, 3), (2, 6)])
def test_under_torchrun_each_process_counts_its_threads(monkeypatch, processes, threads):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: processes > 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    recipe = replace(SMALL, threads=None, devices=processes)
    assert devices.count_threads(recipe) == threads
    assert devices.count_threads(replace(recipe, threads=4)) == 4


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


@pytest.fixture
def images(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), 10 * i).save(tmp_path / "images" / name / f"{i}.png")


@pytest.mark.usefixtures("images")
def test_the_data_decide_what_a_recipe_leaves_open(capsys):
    recipe = replace(SMALL, model="resnet8", data="images", std=[0.1, 0.2, 0.3], validation=0.2)
    recipe = replace(recipe, progress=True)
    run = fit(recipe)
    pixels = load_dataset("images", validation=0.2).train.images / 255
    mean = [round(value.item(), 4) for value in pixels.mean((0, 2, 3))]
    resolved = replace(recipe, image_size=32, mean=mean)
    assert load_recipe(str(run.folder / "recipe.yaml")) == resolved
    config = load_network(run.folder)[1]
    assert (config["image_size"], config["std"]) == ([32, 32], [0.1, 0.2, 0.3])
    assert config["mean"] == mean
    printed = capsys.readouterr().out
    assert "12 training, 4 validation and 4 test images of 32×32 pixels" in printed
    assert f"mean {mean}, std [0.1, 0.2, 0.3]" in printed


@pytest.mark.usefixtures("images")
def test_a_run_goes_on_with_the_mean_and_std_that_it_began_with(tmp_path):
    recipe = resolve(replace(SMALL, model="resnet8", data="images", validation=0.2))
    assert recipe.mean is recipe.std is None
    folders.new_folder(tmp_path / "run", replace(recipe, mean=[0.25] * 3, std=[0.75] * 3))
    folders.refuse_folder(tmp_path / "run", recipe, resume=True, overwrite=False)
    job = setup.prepare(devices.create_fabric(recipe), recipe, resumed=tmp_path / "run")
    assert (job.recipe.mean, job.recipe.std) == ([0.25] * 3, [0.75] * 3)
    named = replace(recipe, mean=[0.5] * 3)
    with pytest.raises(ValueError, match=r"another recipe: mean \(\[0\.25"):
        folders.refuse_folder(tmp_path / "run", named, resume=True, overwrite=False)


@pytest.mark.usefixtures("images")
def test_each_replica_has_the_mean_of_its_own_training_images():
    recipe = replace(SMALL, model="resnet8", data="images", epochs=1, replicas=2, validation=0.2)
    run = fit(recipe)
    recipes = [load_recipe(str(run.folder / f"seed-{seed}" / "recipe.yaml")) for seed in (0, 1)]
    for seed, own in enumerate(recipes):
        images = load_dataset("images", validation=0.2, seed=seed).train.images
        assert (own.mean, own.std) == measure_statistics(images)
    assert load_recipe(str(run.folder / "recipe.yaml")).mean is None


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
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "avx512_f": True}, "32"),
        ({}, "32"),
        (None, "32"),  # of a PyTorch that does not say
    ],
)
def test_automatic_precision_is_bfloat16_where_the_processor_has_it(
    capabilities, precision, monkeypatch
):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    recipe = replace(SMALL, precision="auto")
    assert resolve(recipe).precision == precision
    assert resolve(replace(recipe, precision="32")).precision == "32"
    assert resolve(replace(recipe, device="cpu")).precision == precision


def test_a_run_says_which_precision_was_chosen():
    result = fit(replace(SMALL, epochs=1, precision="auto"), net())
    chosen = load_recipe(str(result.folder / "recipe.yaml")).precision
    assert chosen in ("32", "bf16-mixed")
    assert result.summary["precision"] == chosen


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
