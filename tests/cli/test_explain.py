"""The command `explain`: figures, tables and refusals, on small pictures and a bundled network."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from pictures import paint
from PIL import Image

from spem.cli import main
from spem.data.batches import normalise
from spem.data.images import prepare_image
from spem.explain import check_cams, compute_cams, figures
from spem.explain.checks import area
from spem.export.network import load_network
from spem.models.pretrained import find_run

SPEM, ECA, OTHER = "resnet20-spem-cifar10", "resnet20-eca-cifar10", "resnet20-spem-cifar100"


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    noise = torch.Generator().manual_seed(0)
    for name in ("a/one.png", "b/one.png"):
        pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=noise).numpy()
        Path("in", name).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(Path("in", name))


def table(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def width_of(path):
    with Image.open(path) as image:
        return image.width


def maps_of(run, path, **options):
    model, config = load_network(find_run(run))
    image = normalise(prepare_image(path, size=32, channels=3), config["mean"], config["std"])
    return compute_cams(model, image[None], **options), config["classes"]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are laid out by nobody, which takes most of the time, and their files are empty."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


def test_the_figures_of_pictures_have_their_numbers_beside_them(capsys):
    assert main(["explain", SPEM, "in", "--versus", ECA, "--out", "out"]) == 0
    assert "2 pictures, classes.csv: in out" in capsys.readouterr().out
    assert sorted(p.name for p in Path("out").iterdir()) == [
        *("classes.csv", "one-2.csv", "one-2.png", "one.csv", "one.png"),
    ]
    assert width_of("out/one.png") > 1000
    first, classes = maps_of(SPEM, "in/b/one.png")
    other, _ = maps_of(ECA, "in/b/one.png", classes=first.classes)
    rows = table("out/one-2.csv")
    assert {row["class"] for row in rows} == {classes[int(first.classes)]}
    for run, found in ((SPEM, first), (ECA, other)):
        values = [float(row["value"]) for row in rows if row["network"] == run]
        expected = found.maps.flatten()
        torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-3, atol=1e-6)
    rows = [r for r in table("out/classes.csv") if r["picture"] == "in/b/one.png"]
    best = other.logits.softmax(1)[0].topk(5)
    assert [r["class"] for r in rows if r["network"] == ECA] == [classes[n] for n in best.indices]
    sure = [float(r["probability"]) for r in rows if r["network"] == ECA]
    torch.testing.assert_close(torch.tensor(sure), best.values, rtol=1e-3, atol=1e-6)


def test_a_method_a_layer_and_a_class_are_chosen(undrawn):
    words = ["--method", "gradcam++", "--layer", "layer2", "--class", "cat"]
    assert main(["explain", SPEM, "in/a", *words]) == 0
    found, _ = maps_of(SPEM, "in/a/one.png", method="gradcam++", layer="layer2", classes=3)
    values = torch.tensor([float(row["value"]) for row in table("explained/one.csv")])
    torch.testing.assert_close(values, found.maps.flatten(), rtol=1e-3, atol=1e-7)


def test_pictures_of_any_kind_are_converted_by_the_rule_of_all_commands(capsys, monkeypatch):
    """See `prepare_image`; what cannot be read is named, and the others are explained."""
    drawn = []
    monkeypatch.setattr("spem.data.images.MOST_PIXELS", 10_000)
    monkeypatch.setattr(figures, "draw_explanation", lambda path, *_: drawn.append(path))
    wide = Image.linear_gradient("L").resize((30, 24))
    Path("odd").mkdir()
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        suffix = "tif" if mode == "CMYK" else "png"
        image = Image.new(mode, (30, 24)) if mode == "I;16" else wide.convert(mode)
        image.save(f"odd/{mode.replace(';', '')}.{suffix}")
    turned = Image.Exif()
    turned[0x0112] = 6
    wide.save("odd/turned.jpg", exif=turned)
    wide.save("odd/moving.gif", save_all=True, append_images=[wide.rotate(9)])
    wide.resize((1, 1)).save("odd/tiny.png")
    wide.resize((400, 20)).save("odd/long.png")
    wide.resize((101, 100)).save("odd/huge.png")
    wide.convert("F").save("odd/float.tif")
    Path("odd/text.png").write_text("text")
    assert main(["explain", SPEM, "odd", "gone.png"]) == 1
    said = capsys.readouterr()
    assert "11 pictures" in said.out
    lines = said.err.splitlines()
    assert len(lines) == 4
    assert any("odd/huge.png cannot be read as an image: it has 101×100 pixels" in x for x in lines)
    assert any("odd/float.tif has floating-point pixels" in line for line in lines)
    assert any("odd/text.png cannot be read as an image" in line for line in lines)
    assert any("there is no image gone.png" in line for line in lines)
    assert len({*drawn}) == 11


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([SPEM], "images is empty: name pictures or folders, or give"),
        (["nowhere", "in"], "there is no folder nowhere, nor a bundled network of that name"),
        ([SPEM, "in", "--layer", "layr3"], "unknown layer 'layr3'; known: layer3, layer3.0"),
        ([SPEM, "in", "--class", "caat"], "unknown class 'caat'; known: cat, "),
        ([SPEM, "in", "--method", "cam"], "--method must be {gradcam,hirescam,gradcam++}"),
        ([SPEM, "in", "--versus", OTHER], f"{OTHER} knows other classes than {SPEM}"),
        ([SPEM, "in", "--versus", "nowhere"], "there is no folder nowhere"),
        ([SPEM, "in", "--out", "in/a/one.png/out"], "not a directory: in/a/one.png/out"),
        ([SPEM, "in", "--out", "in/a/one.png"], "file exists: in/a/one.png"),
        ([SPEM, "--check", "--most", "0"], "most is 0, must be at least 1"),
        ([SPEM, "text.png", "--check"], "no picture can be read: text.png cannot be read"),
        ([SPEM, "empty"], "empty holds no image (.jpg"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(capsys, words, sentence):
    Path("empty").mkdir()
    Path("text.png").write_text("text")
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(["explain", *words]))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"spem: error: {sentence}")


def test_weights_of_another_architecture_are_refused(capsys):
    folder = find_run(SPEM)
    Path("run").mkdir()
    config = (folder / "config.json").read_text().replace("resnet20", "resnet8")
    Path("run/config.json").write_text(config)
    Path("run/model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert main(["explain", "run", "in"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run/model.safetensors" in line


def test_a_folder_that_may_not_be_written_to_is_named(capsys, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["explain", SPEM, "in", "--out", "theirs"]) == 2
    assert capsys.readouterr().err == "spem: error: permission denied: theirs\n"


def test_the_extra_that_draws_is_named_where_it_is_missing(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "spem.explain.figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["explain", SPEM, "in"]) == 2
    assert "it comes with the extra 'explain'" in capsys.readouterr().err


def test_class_names_that_no_figure_can_hold_are_shortened(tmp_path):
    top = [("a class $with$ a very long name\n\x1b[31m" * 3, 0.99), ("b", 0.01)]
    found = figures.Explained(
        "net", torch.zeros(1, 9, 5, dtype=torch.uint8), torch.zeros(2, 3), *top[0], top
    )
    figures.draw_explanation(tmp_path / "drawn.png", "t\n" * 50, [found])
    assert width_of(tmp_path / "drawn.png") < 1200


def paint_photos():
    """A folder of the classes of CIFAR-10, one test image each."""
    for label, name in enumerate(load_network(find_run(SPEM))[1]["classes"]):
        for number in range(11):
            part = "train" if number else "test"
            paint(Path("photos", part, name, f"{number}.png"), 20 * label + number)


def test_a_network_without_gates_has_none_to_draw(capsys):
    plain = str(Path(__file__).parents[2] / "docs/results/cifar10-twenty/weights/none")
    assert main(["explain", SPEM, "--gates", "--versus", plain]) == 2
    assert f"{plain} has no gates to draw: leave out --gates" in capsys.readouterr().err


def test_maps_of_networks_are_checked_over_pictures(capsys, undrawn):
    Path("in/bad.png").write_text("text")
    assert main(["explain", ECA, "in", "--check", "--method", "hirescam"]) == 1
    said = capsys.readouterr()
    assert re.search(r"insertion, random map .* 0\.\d{3} ± \d+\.\d{3} ", said.out)
    assert "spem: not checked: in/bad.png cannot be read" in said.err
    files = sorted(path.name for path in Path("explained").iterdir())
    assert files == ["check.csv", "curves.csv", "curves.png"]
    model, config = load_network(find_run(ECA))
    images = torch.stack([prepare_image(f"in/{n}/one.png", size=32, channels=3) for n in "ab"])
    pixels = normalise(images, config["mean"], config["std"])
    expected = check_cams(model, pixels, method="hirescam")
    rows = [row for row in table("explained/check.csv") if row["network"] == ECA]
    assert [row["picture"] for row in rows] == ["in/a/one.png", "in/b/one.png"]
    for key, values in (
        ("insertion", area(expected.insertion)),
        ("similarity", expected.similarity),
    ):
        found = torch.tensor([float(row[key]) for row in rows])
        torch.testing.assert_close(found, values.float(), rtol=1e-3, atol=1e-5)
    curves = [row for row in table("explained/curves.csv") if row["network"] == ECA]
    assert len(curves) == 4 * 21


def test_maps_are_checked_over_some_test_images_of_the_data_set():
    paint_photos()
    words = ["--check", "--data", "photos", "--most", "2", "--class", "cat"]
    assert main(["explain", SPEM, *words]) == 0
    rows = table("explained/check.csv")
    assert len(rows) == 2
    assert {row["class"] for row in rows} == {"cat"}
    assert all(row["picture"].startswith("test image ") for row in rows)
    assert width_of("explained/curves.png") > 1000


PAGE = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_run(undrawn):
    """With the gates over a folder of images in the place of CIFAR-10."""
    paint_photos()
    Path("in").rename("pictures")
    for number, file in enumerate(("cat.png", "dog.png")):
        Path("pictures", "ab"[number], "one.png").rename(Path("pictures", file))
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line.split()[1:] for block in blocks for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        words = [word.replace("photos", "pictures") for word in command]
        words += ["--data", "photos"] if "--gates" in words else []
        assert main(words) == 0, words
    written = {path.name for path in Path("explained").iterdir()}
    assert written >= {"cat.png", "dog.csv", "classes.csv", "gates.png", "mixing.csv", "check.csv"}
