"""Networks by the names of timm, torchvision and Hugging Face: built, started, trained, loaded."""

import json
import os
from dataclasses import replace

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, randomise_norms
from PIL import Image

import spem
from spem.cli import main
from spem.data.batches import normalise
from spem.data.images import ImageForm, prepare_image
from spem.export.network import load_network
from spem.gates import gate_options
from spem.models import create_model, preprocessing
from spem.models.libraries import network_of
from spem.models.preprocessing import library_preprocessing
from spem.train import fit, load_recipe
from spem.train.parts import classifier_parameters
from spem.train.prediction import list_pictures, predict
from spem.train.recipe import Recipe
from spem.train.resolving import resolve

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NAMES = ("timm:test_resnet", "torchvision:mnasnet0_5", "hf:")
TINY = {"image_size": 16, "epochs": 1, "progress": False, "precision": "32", "batch_size": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network of Hugging Face in a folder, with seven classes and statistics at random."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    config = transformers.ResNetConfig(**sizes, num_labels=7)
    model = randomise_norms(transformers.ResNetForImageClassification(config))
    model.save_pretrained(path := tmp_path_factory.mktemp("hf"))
    return path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """No library reaches its hub, and none finds what an earlier program has fetched."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def name_of(name, folder):
    return f"hf:{folder}" if name == "hf:" else name


def fill_cache(name, tmp_path, model):
    """Put weights where torchvision keeps what it has fetched."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = tmp_path / "torch/hub/checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)


@pytest.mark.parametrize("gate", EACH_GATE)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_a_library_has_gates_classes_and_channels_as_asked(name, gate, folder):
    options = {"reduction": 2} if "reduction" in gate_options(gate) else {}
    options |= {"groups": 4} if "groups" in gate_options(gate) else {}
    options = OPTIONS.get(gate, {}) | options
    model = create_model(name_of(name, folder), gate, 5, 1, at="stage", **options).eval()
    assert model(X[:, :1]).shape == (2, 5)
    assert spem.attachment(model)["gate"] == gate
    assert model.config.at == "stage"
    assert model.config.library["name"] in ("timm", "torchvision", "transformers")


@pytest.mark.parametrize(
    "name",
    [
        *("timm:convnext_atto", "timm:mobilenetv3_small_050", "timm:regnety_002"),
        *("torchvision:densenet121", "torchvision:mnasnet0_5", "torchvision:googlenet"),
    ],
)
def test_networks_of_other_families_take_grey_pictures(name):
    at = "inception*" if "google" in name else "residual"
    model = create_model(name, "se", 5, 1, at=at, reduction=4)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)  # in training, too


@pytest.mark.parametrize("gate", ["spem", None])
def test_pretrained_weights_give_the_outputs_of_the_library(gate, folder, tmp_path, caplog):
    source = randomise_norms(torchvision.models.resnet18()).eval()
    fill_cache("resnet18", tmp_path, source)
    model = create_model("torchvision:resnet18", gate, pretrained=True).eval()
    torch.testing.assert_close(model(X), source(X))
    hf = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    model = create_model(f"hf:{folder}", gate, pretrained=True).eval()
    torch.testing.assert_close(model(X), hf(X).logits)
    assert not caplog.messages
    other = create_model(f"hf:{folder}", gate, num_classes=5, pretrained=True).eval()
    assert other(X).shape == (2, 5)
    (said,) = caplog.messages
    assert said == (
        "the classifier 'classifier.1' starts anew: it has 5 classes, that of the pretrained"
        f" weights of hf:{folder} has 7"
    )
    inner, own = hf.state_dict(), network_of(other).state_dict()
    assert all(torch.equal(own[k], v) for k, v in inner.items() if "classifier" not in k)


def test_timm_takes_its_weights_from_its_cache(monkeypatch):
    source = randomise_norms(timm.create_model("resnet10t")).eval()

    def load(model, **_):
        model.load_state_dict(source.state_dict())

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    model = create_model("timm:resnet10t", "spem", pretrained=True).eval()
    torch.testing.assert_close(model(X), source(X))


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("timm:resnet10t", ConnectionError, "the weights of timm:resnet10t cannot be fetched: "),
        ("torchvision:resnet18", ConnectionError, "torchvision:resnet18 cannot be fetched: "),
        ("hf:some/network", ConnectionError, "of hf:some/network cannot be fetched: "),
        ("timm:resnet19", ValueError, "unknown model 'timm:resnet19'; known: timm:resnet18, "),
        ("timm:resnet18.none", ValueError, r"'timm:resnet18.none'; known: timm:resnet18, timm:"),
        ("torchvision:resnet19", ValueError, "known: torchvision:resnet18, "),
        ("keras:resnet50", ValueError, "unknown library 'keras'; known: "),
    ],
)
def test_what_cannot_be_had_is_said_in_one_sentence(name, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        create_model(name, "se", num_classes=5, pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"at": "layer9"}, "no module of the model is named 'layer9'; there are: layer"),
        ({"placement": "residual"}, "placement is 'residual', but the gates .* are placed by at"),
        ({"block": "basic"}, "has no choice of blocks"),
        ({"pretrained": "cifar10"}, "pretrained is 'cifar10', must be True or False"),
        ({"gate": None, "at": "stage"}, "at given without a gate"),
        ({"name": "timm:vit_tiny_patch16_224"}, "at='residual' matches no module of this Vision"),
        ({"name": "resnet20", "at": "stage"}, "at is 'stage', but 'resnet20' has placement"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model(**({"name": "timm:resnet10t", "gate": "se"} | keys))


@pytest.mark.parametrize(
    ("name", "at"), [*((name, "stage") for name in NAMES), ("hf:", ["resnet*.layers.0"])]
)
def test_the_folder_of_a_run_loads_without_its_library_fetching_anything(
    name, at, folder, tmp_path, monkeypatch, capsys
):
    full = name_of(name, folder)
    keys = {"model": full, "gate": "spem", "at": at, "init": None, "schedule": "constant"}
    recipe = load_recipe("digits", **keys, **TINY)
    result = fit(recipe, out=tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["library"].keys() >= {"name", "version"}
    assert config["attachment"]["gate"] == "spem"
    assert config["model"] == full
    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoConfig, "from_pretrained", None)  # of no use any more
        model, _ = load_network(tmp_path / "run")
    x = X[:, :1]
    assert torch.equal(model(x), result.model(x))
    assert main(["gate-report", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "gate" in capsys.readouterr().out
    again = fit(replace(recipe, epochs=2), out=tmp_path / "run", resume=True)
    assert not torch.equal(again.model(x), model(x))


def test_a_run_of_another_version_of_the_library_says_so(folder, tmp_path):
    recipe = load_recipe("digits", model=f"hf:{folder}", gate="se", **TINY)
    fit(recipe, out=tmp_path / "run")
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    config["library"]["version"] = "1.0"
    config["library"]["config"]["hidden_sizes"] = [16, 24]
    del config["attachment"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trained with transformers 1.0, this is"):
        load_network(tmp_path / "run")


def test_a_comparison_runs_in_processes_of_its_own(folder, tmp_path, capsys):
    command = ["compare", "--data", "digits", "--model", f"hf:{folder}", "--gates", "none", "spem"]
    keys = ["--pretrained", "--at", "stage", "--seeds", "1", "--epochs", "1", "--image-size", "16"]
    keys += ["--batch-size", "512", "--no-costs", "--out", str(tmp_path / "cmp")]
    assert main([*command, *keys]) == 0
    assert main(["report", str(tmp_path / "cmp")]) == 0
    page = (tmp_path / "cmp/report.md").read_text()
    assert "spem" in page
    assert os.listdir(tmp_path / "cmp/cells")  # noqa: PTH208


# Where a pixel more is cut off one side, Hugging Face's is the other one.
@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet50", "hf:"])
def test_pictures_are_prepared_as_the_library_does_it(name, size, folder, tmp_path):
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    if name == "hf:":
        options = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}
        processor = transformers.ConvNextImageProcessorPil(**options)
        processor.save_pretrained(folder)
        expected = processor(picture, return_tensors="pt").pixel_values[0]
    elif name == "timm:resnet10t":
        stored = timm.get_pretrained_cfg("resnet10t").to_dict()
        found = timm.data.resolve_data_config(pretrained_cfg=stored)
        expected = timm.data.create_transform(**found)(picture)
    else:
        weights = torchvision.models.get_model_weights("resnet50").DEFAULT
        expected = weights.transforms()(picture)
    recipe = resolve(Recipe(model=name_of(name, folder), data=str(tmp_path)))
    form = ImageForm(recipe.image_size, 3, recipe.interpolation, recipe.crop_ratio)
    images = prepare_image(picture, **form._asdict())
    own = normalise(images, recipe.mean, recipe.std)
    torch.testing.assert_close(own, torch.as_tensor(expected))


def test_a_given_network_of_timm_says_how_its_pictures_are_prepared(tmp_path):
    given, folder = timm.create_model("resnet10t"), str(tmp_path)
    spem.attach(given, "se")
    found = resolve(Recipe(data=folder), given)
    expected = resolve(Recipe(model="timm:resnet10t", data=folder))
    for key in ("mean", "std", "image_size", "interpolation", "crop_ratio"):
        assert getattr(found, key) == getattr(expected, key) is not None
    own = Recipe(data=folder, mean=[0.1] * 3, std=[1.0] * 3)
    assert resolve(own, given).mean == [0.1] * 3


def test_a_network_of_hugging_face_without_a_file_of_its_preprocessing_keeps_the_pictures(tmp_path):
    recipe = resolve(Recipe(model=f"hf:{tmp_path}", data=str(tmp_path)))
    assert (recipe.image_size, recipe.mean, recipe.interpolation) == (32, None, None)
    for size, expected in (
        ({"size": {"height": 40, "width": 40}, "image_mean": [0.5] * 3}, (40, 1.0)),
        ({"size": 50, "do_center_crop": True, "crop_size": {"height": 40}}, (40, 0.8)),
        ({"size": None}, (32, None)),
    ):
        library_preprocessing.cache_clear()
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(size))
        recipe = resolve(Recipe(model=f"hf:{tmp_path}", data=str(tmp_path)))
        assert (recipe.image_size, recipe.crop_ratio) == expected


def test_the_preprocessing_that_cannot_be_fetched_is_named(tmp_path):
    with pytest.raises(ConnectionError, match=r"preprocessor_config.json of hf:a/b .*, or name me"):
        resolve(Recipe(model="hf:a/b", data=str(tmp_path)))
    given = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 32, "interpolation": "bicubic"}
    resolve(Recipe(model="hf:a/b", data=str(tmp_path), crop_ratio=1, **given))


def test_the_folder_of_a_run_on_photographs_predicts_without_its_library(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = torch.randint(256, (30, 40, 3), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / f"photos/{name}/{number}.png")
    keys = {"model": "timm:test_resnet", "image_size": 32, "batch_size": 8, "epochs": 1}
    photos = str(tmp_path / "photos")
    recipe = load_recipe("cifar_quick", data=photos, progress=False, precision="32", **keys)
    result = fit(recipe, out=tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["interpolation"], config["crop_ratio"]) == ("bilinear", 0.95)
    assert config["mean"] == [0.5] * 3
    monkeypatch.setattr(preprocessing, "_ask_timm", None)  # of no use any more
    library_preprocessing.cache_clear()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    files = list_pictures([tmp_path / "photos/cat"])
    (found,) = predict(result.model, config, files)
    form = ImageForm(32, 3, "bilinear", 0.95)
    images = torch.stack([prepare_image(file, **form._asdict()) for file in files])
    with torch.inference_mode():
        assert torch.equal(found.logits, result.model(normalise(images)))
    fit(replace(load_recipe(str(tmp_path / "run/recipe.yaml"))), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["crossvit_9_240", "levit_128s", "repvit_m0_9", "resnet18"])
def test_all_heads_of_a_network_of_timm_are_its_classifier(name):
    with torch.device("meta"):
        model, other = (timm.create_model(name, num_classes=classes) for classes in (5, 7))
    sizes = {key: value.shape for key, value in other.state_dict().items()}
    changed = {key for key, value in model.named_parameters() if value.shape != sizes[key]}
    heads = classifier_parameters(model)
    assert changed <= {key for key, value in model.named_parameters() if value in heads}
