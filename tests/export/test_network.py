"""Networks as two files: written, read again, and refused where they do not fit."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spem
from spem import create_model
from spem.export.network import load_network, save_network
from spem.export.weights import load_weights, start_from

CONFIG = {"classes": ["a", "b"], "data": "x", "image_size": [8, 8], "mean": [0.5], "std": [0.5]}


def test_a_stored_model_is_rebuilt(tmp_path):
    model = create_model("resnet8", "spem", num_classes=2, in_channels=1, alpha=0.2)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model(torch.randn(4, 1, 8, 8))  # moves the running statistics
    config = {**model.config.to_json(), **CONFIG}
    save_network(tmp_path, model, config)
    rebuilt, read = load_network(tmp_path)
    assert read == config
    assert not rebuilt.training
    stored = rebuilt.state_dict()
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_weights_that_are_shared_are_stored(tmp_path):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    save_network(tmp_path, model, CONFIG)
    weight = first.weight.detach().clone()
    nn.init.zeros_(first.weight)
    load_weights(model, tmp_path)
    assert torch.equal(second.weight, weight)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            nn.Sequential(nn.Linear(3, 4)),
            r"2 mismatched \(0.bias \(3,\) for \(4,\), 0.weight ",
        ),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), r"2 missing \(1.bias, 1.weight\)$"),
        (nn.Sequential(nn.Linear(3, 3, bias=False)), r"1 unexpected \(0.bias\)$"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, other, named):
    save_network(tmp_path, nn.Sequential(nn.Linear(3, 3)), CONFIG)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("source", ["run", "file", "bundled"])
def test_a_classifier_of_other_classes_starts_anew_and_all_else_is_loaded(source, tmp_path):
    stored = create_model("resnet20", "spem", pretrained="cifar10")
    if source != "bundled":
        save_network(tmp_path, stored, CONFIG)
    places = {"run": tmp_path, "file": tmp_path / "model.safetensors"}
    place = places.get(source, "resnet20-spem-cifar10")
    model = create_model("resnet20", "spem", num_classes=3)
    classifier = model.fc.weight.detach().clone()
    said = f"the classifier 'fc' starts anew: it has 3 classes, that of {place} has 10"
    assert start_from(model, place) == ([said], True)
    assert torch.equal(model.fc.weight, classifier)
    state = model.state_dict()
    others = {name: value for name, value in stored.state_dict().items() if "fc." not in name}
    assert all(torch.equal(value, state[name]) for name, value in others.items())
    same = create_model("resnet20", "spem")
    assert start_from(same, place) == ([], True)
    assert torch.equal(same.fc.weight, stored.fc.weight)


@pytest.mark.parametrize(
    "other", [("resnet20", "se", 3), ("resnet14", "spem", 3), ("vgg11", None, 10)]
)
def test_only_a_classifier_may_differ(other):
    name, gate, classes = other
    model = create_model(name, gate, num_classes=classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="but of resnet20 with the gate spem: ") as caught:
        start_from(model, "resnet20-spem-cifar10")
    if name != "vgg11":
        assert "fc." not in str(caught.value)  # the classifier may differ
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("wrapped", ["", "module.", "_orig_mod."])
def test_files_of_other_programs_are_read(suffix, wrapped, tmp_path):
    stored = create_model("resnet8")
    state = {f"{wrapped}{key}": value for key, value in stored.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        whole = suffix == ".pt"  # a checkpoint that holds more
        torch.save({"state_dict": state, "epoch": 3, "optimizer": {}} if whole else state, path)
    model = create_model("resnet8")
    assert start_from(model, path) == ([], True)
    assert all(torch.equal(v, stored.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (nn.Linear(3, 3), "holds no state dict that can be read safely: save model.state_dict"),
        (b"none", "holds no state dict that can be read safely"),
        (torch.ones(3), "holds no state dicts, must hold one"),
        ({"model": {"a": torch.ones(3)}, "ema": {"a": torch.ones(3)}}, "holds 2 state dicts"),
        ({"a": torch.tensor([torch.nan])}, "a of .* has values that are not finite"),
        ({"a": torch.ones(3)}, "are not those of the model: nothing was loaded"),
    ],
)
def test_a_file_that_holds_no_state_dict_of_the_network_is_refused(content, sentence, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    model = create_model("resnet8")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=sentence) as caught:
        start_from(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_that_are_nowhere_name_what_there_is():
    with pytest.raises(
        FileNotFoundError, match="no weight file nowhere; bundled networks: resnet20-"
    ):
        start_from(nn.Linear(3, 3), "nowhere")


def test_a_run_of_a_network_of_ones_own_is_read_into_one_like_it(tmp_path):
    trained = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    spem.attach(trained, "se", at="1")
    nn.init.normal_(trained[1].gate.fc2.weight)
    save_network(tmp_path, trained, CONFIG | {"model": None, "gate": None, "gate_options": {}})
    x = torch.randn(2, 3, 8, 8)
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    gated = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    spem.attach(gated, "se", at="1")
    for network in (fresh, gated):  # the gates are attached where there are none
        model, config = load_network(tmp_path, network)
        assert model is network
        assert not model.training
        assert config["classes"] == CONFIG["classes"]
        assert config["attachment"] == spem.attachment(trained)
        assert torch.equal(model(x), trained.eval()(x))


def test_a_run_of_an_earlier_version_has_no_attachment(tmp_path):
    trained = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    spem.attach(trained, "se", at="1")
    save_network(tmp_path, trained, CONFIG | {"model": None, "gate": None, "gate_options": {}})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attachment"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="gate"):
        load_network(tmp_path, fresh)
    spem.attach(fresh, "se", at="1")
    load_network(tmp_path, fresh)


def test_gates_on_a_network_of_create_model_are_stored_too(tmp_path):
    trained = create_model("resnet8")
    spem.attach(trained, "se", at="stage", reduction=4)
    config = CONFIG | {"model": None, "gate": None, "gate_options": {}, "attachment": {"gate": "x"}}
    save_network(tmp_path, trained, config)
    model, _ = load_network(tmp_path, create_model("resnet8"))
    assert spem.attachment(model)["at"] == ["layer1", "layer2", "layer3"]
    save_network(tmp_path, create_model("resnet8", "se"), config)
    assert "attachment" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    "changes", [{"dry_run": True}, {"channels": {"1": "8"}}, {"at": "1"}, {"then": [1]}]
)
def test_a_damaged_attachment_is_named(tmp_path, changes):
    trained = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    spem.attach(trained, "se", at="1")
    save_network(tmp_path, trained, CONFIG | {"model": None, "gate": None, "gate_options": {}})
    config = json.loads((tmp_path / "config.json").read_text())
    config["attachment"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="attachment"):
        load_network(tmp_path, nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))


def test_a_run_that_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_network(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_weights(nn.Linear(3, 3), tmp_path)
    save_network(
        tmp_path, nn.Linear(3, 3), CONFIG | {"model": None, "gate": None, "gate_options": {}}
    )
    with pytest.raises(ValueError, match="of your own"):
        load_network(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_weights(nn.Linear(3, 3), tmp_path)
    for text in ("{", "{}", "[]", "3", json.dumps(CONFIG), json.dumps({"model": "resnet8"})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))):
            load_network(tmp_path)


def test_stored_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    save_network(tmp_path, nn.Linear(3, 3), CONFIG)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
