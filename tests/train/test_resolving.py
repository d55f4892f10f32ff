"""What a recipe leaves open: its data, its machine and a given model fill it in."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from runs import SMALL, net

from spem.data.batches import measure_statistics
from spem.data.dataset import load_dataset
from spem.export.network import load_network
from spem.train import devices, setup
from spem.train import folder as folders
from spem.train.fitting import fit
from spem.train.recipe_files import load_recipe
from spem.train.resolving import resolve


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


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


def test_a_given_network_has_its_weights_already(capsys):
    recipe = replace(SMALL, epochs=1, pretrained=True)
    assert not load_recipe(str(fit(recipe, net()).folder / "recipe.yaml")).pretrained
    assert "a given network starts from the weights that it has" in capsys.readouterr().out


@pytest.mark.parametrize(("processes", "threads"), [(1, 3), (2, 6)])
def test_under_torchrun_each_process_counts_its_threads(monkeypatch, processes, threads):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: processes > 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    recipe = replace(SMALL, threads=None, devices=processes)
    assert devices.count_threads(recipe) == threads
    assert devices.count_threads(replace(recipe, threads=4)) == 4


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
