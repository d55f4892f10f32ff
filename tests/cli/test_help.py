"""What the command line says of itself: help, defaults, the recipe, completion."""

import re
import subprocess
import sys

import pytest

from spem.cli import main
from spem.train.recipe_files import load_recipe

USUAL = [
    "model",
    "gate",
    "weights",
    "data",
    "epochs",
    "batch-size",
    "lr",
    "config",
    "out",
    "resume",
]


def help_of(capsys, *command):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    return capsys.readouterr().out


def test_help_needs_no_pytorch():
    """Its import alone takes longer than a user waits for help."""
    program = (
        "import contextlib, sys; from spem.cli import main\n"
        "for words in ('', 'train --help', 'bench --help', 'train --print-config'):\n"
        "    with contextlib.suppress(SystemExit):\n        main(words.split())\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_the_module_without_words_prints_the_help(capsys):
    run = subprocess.run([sys.executable, "-m", "spem"], capture_output=True, text=True, check=True)
    assert run.stdout == help_of(capsys)
    assert "Train a network" in run.stdout


def test_the_help_of_train_begins_with_the_flags_used_most(capsys):
    text = help_of(capsys, "train")
    assert re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)[:10] == USUAL
    assert text.index("flags used most") < text.index("--help") < text.index("recipe keys")


@pytest.mark.parametrize(
    ("command", "sentences"),
    [
        (
            "train",
            [
                "(default: 15; digits: 35; finetune: 10; imagenet: 100; paper: 164)",
                "replace the run in --out (default: no)",
            ],
        ),
        ("train", ["moving average of the weights, in (0, 1); with it the averaged weights are"]),
        ("predict", ["(default: 5)", "auto, cpu, cuda or mps (default: auto)"]),
        ("gates", ["(default: 64)"]),
        ("bench", ["names of gates, see spem gates (default: spem)", "format (default: yes)"]),
        (
            "compare",
            ["(default: local)", "measure speed and memory when all runs are finished (def"],
        ),
    ],
)
def test_the_help_shows_the_defaults(capsys, command, sentences):
    text = " ".join(help_of(capsys, command).split())
    assert all(sentence in text for sentence in sentences)
    assert "None" not in text
    assert "False" not in text


def test_the_printed_recipe_is_one_that_config_takes(capsys, tmp_path):
    words = ["--config", "paper", "--epochs", "3", "--gate-options.alpha", "0.2", "--ema", "0.9"]
    assert main(["train", *words, "--print-config"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    given = {"epochs": 3, "gate_options": {"alpha": 0.2}, "ema": 0.9}
    assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe("paper", **given)
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == (tmp_path / "mine.yaml").read_text()


def test_a_shell_without_completion_is_told_which_have_it(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--print-completion", "fish"])
    error = "spem: error: --print-completion must be one of bash, zsh, tcsh, got 'fish'\n"
    assert capsys.readouterr().err == error


def test_the_commands_have_one_heading(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.count("commands:") == 1
    assert "subcommand" not in text


def test_bash_completes_commands_flags_and_choices(capsys, tmp_path):
    pytest.importorskip("shtab", reason="shtab comes with the extra train")
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "bash"])
    (tmp_path / "spem.sh").write_text(capsys.readouterr().out)
    script = """
        source spem.sh
        for words in "tr" "train --epo" "train --device c" "search"; do
            COMP_WORDS=(spem $words) COMP_CWORD=$(wc -w <<< "$words") COMPREPLY=()
            _shtab_spem; echo "${COMPREPLY[*]}"
        done
    """
    run = ["bash", "-c", script]
    printed = subprocess.check_output(run, text=True, cwd=tmp_path)
    assert printed.split("\n")[:4] == ["train", "--epochs", "cpu cuda", "search-placement"]
