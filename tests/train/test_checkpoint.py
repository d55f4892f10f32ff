import csv
import json
import os
import re
import resource
import zipfile

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import spem
from spem import create_model
from spem._files import atomically, write_table, write_text
from spem.export.network import load_network, load_weights, save_network, start_from
from spem.train import checkpoint, results
from spem.train import folder as folders
from spem.train.recipe import Recipe

CONFIG = {"classes": ["a", "b"], "data": "x", "image_size": [8, 8], "mean": [0.5], "std": [0.5]}


@pytest.fixture
def state():
    return {"weights": torch.randn(100), "history": [{"loss": 0.25, "top5": None}], "epoch": 3}


def half_a_write(path):
    path.write_text("half")
    raise OSError("disk full")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), atomically(path) as temporary:
        half_a_write(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    path, link = tmp_path / "real.csv", tmp_path / "link.csv"
    path.write_text("old")
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"  # as /dev/stdout and /dev/null, which no test may touch
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(IsADirectoryError), atomically(tmp_path):
        pytest.fail("the work would be lost")
    with pytest.raises(FileNotFoundError, match=r"none'$"), atomically(tmp_path / "none" / "x"):
        pytest.fail("the work would be lost")


def test_a_checkpoint_reads_back_equal(tmp_path, state):
    checkpoint.save_checkpoint(tmp_path / "checkpoint.pt", state)
    loaded = checkpoint.load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state


def test_a_full_disk_is_an_error_of_the_system_and_the_last_checkpoint_stays(tmp_path, state):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, state)
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save_checkpoint(path, state | {"weights": torch.zeros(10_000)})
        with pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
            save_network(tmp_path, nn.Linear(100, 100), CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_any_damage_to_a_checkpoint_is_found(tmp_path, state):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, state)
    whole = path.read_bytes()
    weights = whole.index(state["weights"].numpy().tobytes())
    altered = whole[:weights] + bytes([whole[weights] ^ 1]) + whole[weights + 1 :]
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "no tensors")
    other = (tmp_path / "other.zip").read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", b"text", altered, other):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            checkpoint.load_checkpoint(path)


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
    assert start_from(model, place) == said
    assert torch.equal(model.fc.weight, classifier)
    state = model.state_dict()
    others = {name: value for name, value in stored.state_dict().items() if "fc." not in name}
    assert all(torch.equal(value, state[name]) for name, value in others.items())
    same = create_model("resnet20", "spem")
    assert start_from(same, place) is None
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
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="gate"):
        load_network(tmp_path, fresh)
    spem.attach(fresh, "se", at="1")
    model, config = load_network(tmp_path, fresh)
    assert model is fresh
    assert not model.training
    assert config["classes"] == CONFIG["classes"]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), trained.eval()(x))


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


def test_unnamed_folders_take_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, gated = Recipe(data="some/pictures"), Recipe(gate="spem")
    names = [str(folders.number_folder(recipe)) for recipe in (plain, gated, gated)]
    stems = ("resnet20-plain-pictures-0", "resnet20-spem-digits-0", "resnet20-spem-digits-1")
    assert names == [f"runs/{stem}" for stem in stems]


def test_an_overwritten_folder_loses_the_old_run_and_nothing_else(tmp_path):
    for name in (*folders.FILES, "notes.txt"):
        (tmp_path / name).write_text("old")
    recipe = Recipe(epochs=2)
    folders.refuse_folder(tmp_path, recipe, resume=False, overwrite=True)
    folders.new_folder(tmp_path, recipe)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "notes.txt"}
    assert (tmp_path / "recipe.yaml").read_text() == recipe.to_yaml()


def test_a_folder_in_use_is_refused_unless_the_recipe_continues_it(tmp_path):
    recipe = Recipe(lr=0.2)
    folders.refuse_folder(tmp_path, recipe, resume=False, overwrite=False)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        folders.refuse_folder(tmp_path, recipe, resume=True, overwrite=False)
    folders.new_folder(tmp_path, recipe)
    with pytest.raises(FileExistsError, match="exists"):
        folders.refuse_folder(tmp_path, recipe, resume=False, overwrite=False)
    with pytest.raises(ValueError, match="exclude"):
        folders.refuse_folder(tmp_path, recipe, resume=True, overwrite=True)
    moved = Recipe(lr=0.2, data_dir="elsewhere", progress=False)
    folders.refuse_folder(tmp_path, moved, resume=True, overwrite=False)
    with pytest.raises(ValueError, match=r"epochs \(15 there, 3 now\), lr \(0.2 there, 0.1 now\)"):
        folders.refuse_folder(tmp_path, Recipe(epochs=3), resume=True, overwrite=False)


def test_tables_and_curves(tmp_path):
    splits = ("train", "validation", "test")
    rows: list[dict] = [{"epoch": epoch, "top5": None} for epoch in range(2)]
    for row in rows:
        row |= {f"{split}_{key}": 0.5 for split in splits for key in ("loss", "top1")}
        row |= {"validation_loss": None, "validation_top1": None}
    write_table(tmp_path / "metrics.csv", rows)
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["0", "1"]
    assert table[0]["top5"] == table[0]["validation_loss"] == ""
    results.draw_curves(tmp_path / "curves.png", rows, "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def draw(tmp_path, monkeypatch, losses, title="title", validation=True):
    """The axes and the title of the curves of a run, whose second epoch is the best."""
    made = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: made.append(self))
    rows = [{"epoch": epoch, "top5": None} for epoch in range(len(losses))]
    for row, loss in zip(rows, losses, strict=True):
        for split in ("train", "validation", "test"):
            known = split != "validation" or validation
            accuracy = 0.9 if row["epoch"] == 1 else 0.5
            row |= {f"{split}_loss": loss if known else None}
            row |= {f"{split}_top1": accuracy if known else None}
    results.draw_curves(tmp_path / "curves.png", rows, title)
    (figure,) = made
    return figure


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([2.0, 0.021, 1.0], "linear"), ([2.0, 0.019, 1.0], "log"), ([2.0, 0.0, 1.0], "linear")],
)
def test_losses_have_a_linear_axis_unless_they_span_two_decades(
    tmp_path, monkeypatch, losses, scale
):
    upper, lower = draw(tmp_path, monkeypatch, losses).axes
    assert (upper.get_yscale(), lower.get_yscale()) == (scale, "linear")


def test_epochs_count_from_one_and_the_best_is_marked(tmp_path, monkeypatch):
    figure = draw(tmp_path, monkeypatch, [2.0, 1.0, 1.5])
    for axes in figure.axes:
        *splits, mark = [line for line in axes.lines if len(line.get_xdata())]
        assert all(list(line.get_xdata()) == [1, 2, 3] for line in splits)
        assert list(mark.get_xdata()) == [2, 2]
    assert list(figure.axes[1].lines[0].get_ydata()) == [50, 90, 50]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["train", "validation", "test", "best epoch by validation: 2"]
    markers = [line.get_marker() for line in figure.axes[0].lines[:3]]
    assert len(set(markers)) == 3
    alone = draw(tmp_path, monkeypatch, [2.0, 1.0, 1.5], validation=False)
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["train", "test"]


@pytest.mark.parametrize("title", ["a[b]", "$x$", "$x", "<b>", "a|b"])
def test_a_folders_name_is_the_title_as_it_is(tmp_path, monkeypatch, title):
    figure = draw(tmp_path, monkeypatch, [2.0, 1.0], title)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == title
    assert not figure._suptitle.get_parse_math()


def test_stored_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    save_network(tmp_path, nn.Linear(3, 3), CONFIG)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
