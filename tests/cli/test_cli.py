import re
import shlex
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from PIL import Image

import spem.train.devices
import spem.train.fitting
import spem.train.placement_search
from spem.cli import commands, main
from spem.data.dataset import load_dataset
from spem.train.fitting import Interrupted, Result
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe

COMMANDS = ("train", "evaluate", "predict", "gates")


@pytest.fixture
def asked(monkeypatch):
    """What `spem train` asks of `fit`, which trains nothing."""
    calls = []

    def fit(recipe, **options):
        calls.append((recipe, options))
        return Result(Path("runs/x"), dict.fromkeys(commands._RESULTS), torch.nn.Identity())

    monkeypatch.setattr(spem.train.fitting, "fit", fit)
    monkeypatch.setattr(spem.train.devices, "keep_freed_memory", lambda: None)
    return calls


def refusal(capsys, *words):
    """The one line that a command prints about wrong input."""
    try:
        code = main(words)
    except SystemExit as exit_:
        code = exit_.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("spem: error: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("spem: error: ").rstrip()


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "digits"),
        (["--data", "digits"], "digits"),
        (["--data", "cifar10"], "cifar_quick"),
        (["--data", "cifar100"], "cifar_quick"),
        (["--data", "photos"], "cifar_quick"),
        (["--data", "cifar100", "--config", "paper"], "paper"),
    ],
)
def test_the_recipe_follows_from_the_data(asked, words, recipe):
    assert main(["train", *words]) == 0
    data = {"data": words[1]} if words else {}
    assert asked[0][0] == load_recipe(recipe, **data)


def test_flags_override_the_file_wherever_they_stand(asked, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 3\nlr: 1e-3\nseed: 5\nflip: true\n")
    main(["train", "--epochs", "4", "--config", str(file), "--seed=6", "--no-flip"])
    assert asked[0][0] == Recipe(epochs=4, lr=1e-3, seed=6, flip=False)


def test_every_kind_of_flag(asked):
    main(
        [
            *("train", "--gate", "none", "--validation", "none", "--weight-decay", "1e-4"),
            *("--mean", "[0.5, 0.25]", "--milestones", "[1,2]", "--precision", "32", "--compile"),
            *("--data-dir", "2024", "--mask", "[1,0,1]", "--placement", "norm"),
        ]
    )
    recipe = asked[0][0]
    assert (recipe.gate, recipe.block) == (None, None)
    assert (recipe.placement, recipe.mask) == ("norm", [1, 0, 1])
    assert recipe.validation is None
    assert recipe.weight_decay == 1e-4
    assert recipe.mean == [0.5, 0.25]
    assert recipe.milestones == [1, 2]
    assert recipe.precision == "32"
    assert recipe.compile
    assert recipe.data_dir == "2024"


@pytest.mark.parametrize(
    "words", [["--gate-options.alpha", "0.5"], ["--gate-options", "{alpha: 0.5}"]]
)
def test_gate_options(asked, words):
    main(["train", *words])
    assert asked[0][0].gate_options == {"alpha": 0.5}


def test_every_recipe_key_is_a_flag_that_the_help_explains(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in (key.rstrip("_") for key in Recipe.__dataclass_fields__):
        assert re.search(rf"  --{name.replace('_', '-')}\b.*\s+\w+", text)
    assert max(map(len, text.splitlines())) <= 100
    assert "typing" not in text.lower()
    assert "null" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_narrow_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: spem {command} ")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", ["predict", "gate-report"])
def test_the_flags_that_commands_share_are_explained(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "run folder of the run that trained it, or the name of a network" in text
    assert "--device {auto,cpu,cuda,mps} auto, cpu, cuda or mps" in text
    assert ("--data-dir" in text) == (command != "predict")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train --gate spme", "unknown gate 'spme'; known: spem, se, ese, …; `spem gates` "),
        ("train --model resnt20", "unknown model 'resnt20'; known: resnet"),
        ("train --data cifar11", "there is no folder cifar11, nor a data set of that name; known"),
        ("train --config papr", "unknown recipe 'papr'; known: paper"),
        ("train --resume=", "the value of resume is empty"),
        ("train --epochs 1 --out=", "the value of out is empty"),
        ("train --momentun 0.8", "unknown flag '--momentun'; known: --momentum, --mean, "),
        ("train --batch_size 3", "unknown flag '--batch_size'; known: --batch-size, "),
        ("train --progress false", "--progress takes no value: write --progress, or --no-progress"),
        ("train --flip=true", "--flip takes no value: write --flip, or --no-flip"),
        ("train digits", "'digits' is neither a flag nor the value of one; `spem train --help`"),
        ("gates --chanels 3", "unknown flag '--chanels'; known: --channels, --help"),
        ("train --epochs x", "--epochs must be INT, got 'x'"),
        ("train --mean 0.5", "--mean must be [FLOAT,...], got '0.5'"),
        ("train --mask 1,0", "--mask must be [INT,...], got '1,0'"),
        ("train --mask [2]", "mask must be a list of 0 and 1, got [2]"),
        ("train --gate-options {alpha:", "--gate-options must be a mapping like '{name"),
        ("train --gate-options {alpha:0.2}", "a space after each colon, got '{alpha:0.2}'"),
        ("train --gate-options.mask 1", "gate_options must be a mapping whose keys"),
        ("train --schedule stp", "--schedule must be {step,cosine,onecycle,constant}, got 'stp'"),
        ("train --class-weights x", "--class-weights must be {balanced}, got 'x'"),
        ("train --epochs 0", "epochs must be a whole number from 1 to 1,000,000, got 0"),
        ("train --resume", "--resume needs one folder"),
        ("train --resume a --out b", "--resume needs one folder"),
        ("train --resume a --config paper", "--resume continues a run with its own recipe"),
        ("train --resume nowhere", "there is no folder nowhere"),
        ("train --resume .", ". holds no run to resume: recipe.yaml is missing"),
        ("train --model resnet21", "depth 21"),
        ("gates --channels 0", "channels is 0"),
        ("evaluate nowhere", "there is no folder nowhere, nor a bundled network of that name"),
        ("predict nowhere a.png", "there is no folder nowhere, nor a bundled network"),
        ("predict", "the following arguments are required: run, images"),
        ("trian", "unknown command 'trian'; known: train, "),
        ("models resnt*", "unknown model 'resnt*'; known: resnet"),
        ("report nowhere", "there is no folder nowhere"),
    ],
)
def test_wrong_input_is_one_line(capsys, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, *words.split())
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_of_a_recipe_file(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("momentun: 0.8\n")
    sentence = refusal(capsys, "train", "--config", str(tmp_path / "mine.yaml"))
    assert sentence.startswith("unknown recipe key 'momentun'; known: momentum, ")


@pytest.mark.parametrize("form", ["--resume {0}", "--out {0} --resume"])
def test_resume_takes_the_recipe_of_the_run(asked, tmp_path, form):
    recipe = Recipe(epochs=7, seed=3)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    main(["train", *form.format(tmp_path).split()])
    assert asked == [(recipe, {"out": str(tmp_path), "resume": True, "overwrite": False})]


def test_ctrl_c_prints_a_command_that_continues(asked, capsys, monkeypatch, tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(Recipe(seed=9).to_yaml())

    def interrupted(recipe, **options):
        raise Interrupted(folder)

    with monkeypatch.context() as patch:
        patch.setattr(spem.train.fitting, "fit", interrupted)
        assert main(["train"]) == 130
    command = capsys.readouterr().err.rpartition("continue with: ")[2]
    main(shlex.split(command)[1:])
    assert asked == [(Recipe(seed=9), {"out": str(folder), "resume": True, "overwrite": False})]


@pytest.mark.parametrize("stop", [Interrupted(Path("found")), KeyboardInterrupt()])
def test_ctrl_c_in_a_search_does_not_promise_to_continue(capsys, monkeypatch, stop):
    def interrupted(*_, **__):
        raise stop

    monkeypatch.setattr(spem.train.placement_search, "search_placement", interrupted)
    assert main(["search-placement"]) == 130
    printed = capsys.readouterr().err
    assert "--overwrite or another --out" in printed
    assert "--resume" not in printed


@pytest.mark.parametrize(
    "command",
    ["train", "search-placement", "evaluate run", "predict run a.png", "gate-report run"],
)
def test_whatever_computes_keeps_freed_memory(capsys, monkeypatch, command):
    def keep():
        raise ValueError("kept")

    monkeypatch.setattr(spem.train.devices, "keep_freed_memory", keep)
    assert refusal(capsys, *command.split()) == "kept"


@pytest.mark.parametrize("channels", [3, 16])
def test_gates_are_listed_with_their_parameters(capsys, channels):
    assert main(["gates", "--channels", str(channels)]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"│ spem\W+pooled\W+{4 * channels + 2}\W", printed)
    assert all(re.search(rf"│ {name} +│", printed) for name in spem.GATES)


def listed(capsys, *words):
    """Run `spem gates` and return the rows of its table."""
    assert main(["gates", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    return [row for row in rows if row[0]]


def test_gates_are_listed_with_their_family_and_sorted_by_it(capsys):
    rows = listed(capsys)
    assert [row[0] for row in rows] == [*spem.GATES]
    assert all(len(row) == 3 for row in rows)
    families = dict(row[:2] for row in rows)
    assert {
        "se": "pooled",
        "simam": "quadratic",
        "mca": "strips",
        "cbam": "map",
        "gc": "map",
    }.items() <= families.items()
    assert {*families.values()} == {"pooled", "quadratic", "strips", "map"}
    for place, key in enumerate(["name", "family"]):
        found = [row[place] for row in listed(capsys, "--sort", key)]
        assert found == sorted(found)
    counts = [row[2] for row in listed(capsys, "--sort", "parameters")]
    known = [int(count.replace(",", "")) for count in counts if count != "-"]
    assert known == sorted(known)
    assert counts[len(known) :] == ["-", "-"]
    assert (
        refusal(capsys, "gates", "--sort", "size")
        == "unknown sort 'size'; known: name, family, parameters"
    )


def test_the_long_form_names_the_methods_and_says_what_a_gate_lacks(capsys):
    assert main(["gates", "--long"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("Squeeze-and-Excitation", "method", "'rho'"))


def test_from_training_to_prediction(capsys, tmp_path):
    """What `make train` runs, in small, through the installed command."""
    run, spem_ = tmp_path / "run", Path(sys.executable).with_name("spem")
    words = ["--model", "resnet8", "--epochs", "3", "--threads", "1", "--out", str(run)]
    printed = subprocess.check_output([spem_, "train", *words], text=True, cwd=tmp_path)
    assert re.search(r"best epoch by validation +│ [123] ", printed)
    assert printed.endswith(f"run folder: {run}\n")
    assert main(["evaluate", str(run)]) == 0
    accuracy = re.search(r"top1\W+([\d.]+)", capsys.readouterr().out)
    assert accuracy
    assert accuracy[1] in printed
    assert float(accuracy[1]) > 0.5

    digit = load_dataset("digits").test.images[0, 0]
    Image.fromarray(digit.numpy()).save(tmp_path / "digit.png")
    assert main(["predict", str(run), str(tmp_path / "digit.png"), "--top", "10"]) == 0
    rows = re.findall(r"│ (\d) +│ ([\d.e-]+)", capsys.readouterr().out)
    assert sorted(label for label, _ in rows) == list("0123456789")
    probabilities = [float(probability) for _, probability in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)

    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main(["predict", str(run), str(tmp_path / "broken.png")]) == 1
    assert str(tmp_path / "broken.png") in capsys.readouterr().err
    assert "other classes" in refusal(capsys, "evaluate", str(run), *_images(tmp_path))


def _images(folder: Path) -> list[str]:
    """The flag for a folder of images of two classes, each with ten grey pictures."""
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), 10 * i).save(folder / "images" / name / f"{i}.png")
    return ["--data", str(folder / "images")]


def test_without_the_extra_it_says_how_to_get_it():
    program = "import sys; sys.modules['jsonargparse'] = None; import spem.cli; print('imported');"
    program += "sys.exit(spem.cli.main())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "imported\n")
    assert "Traceback" not in run.stderr
    assert "pip install" in run.stderr


def test_a_search_without_a_gate_is_refused(capsys):
    assert main(["search-placement", "--gate", "none"]) == 2
    assert "needs one" in capsys.readouterr().err


def test_letters_that_the_terminal_lacks_end_no_command(monkeypatch):
    terminal = TextIOWrapper(BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["models", "resnet8"]) == 0
    terminal.flush()
    assert b"3\\xd732" in terminal.buffer.getvalue()
