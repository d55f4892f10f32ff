import re
from dataclasses import replace
from pathlib import Path

import pytest

from spem.compare.records import Ledger
from spem.compare.study import Study, load_study, study_names
from spem.train.identity import FREE_KEYS, deciding_keys, record_key
from spem.train.recipe_files import load_recipe

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SMALL = {"models": "resnet8", "recipe": {"epochs": 1}}


def rows(**keys):
    return list(dict.fromkeys(run.row for run in Study(**SMALL | keys).plan()))


def test_a_grid_is_the_product_of_its_axes_with_the_runs_of_a_seed_together():
    plan = Study(gates=["none", "se"], models=["resnet8", "resnet14"], seeds=3).plan()
    assert [run.recipe.seed for run in plan] == [0] * 4 + [1] * 4 + [2] * 4
    assert [(c.model, c.row) for c in plan[:4]] == [
        ("resnet8", "none"),
        ("resnet8", "se"),
        ("resnet14", "none"),
        ("resnet14", "se"),
    ]
    assert len({run.key for run in plan}) == 12


def test_a_gate_may_be_a_mapping_with_options_a_label_and_places():
    gate = {"gate": "se", "pool": "fixed", "mix": 0.3, "label": "mixed", "placement": "norm"}
    (run,) = Study(**SMALL, gates=gate, seeds=1).plan()
    assert (run.gate, run.row, run.recipe.gate) == ("mixed", "mixed", "se")
    assert run.recipe.gate_options == {"init": "identity", "pool": "fixed", "mix": 0.3}
    assert run.recipe.placement == "norm"


def test_options_of_the_recipes_own_gate_do_not_reach_another():
    (run,) = Study(config="paper", gates="se", data="digits", seeds=1).plan()
    assert run.recipe.gate_options == {}


def test_folds_stand_in_the_place_of_seeds(tmp_path):
    plan = Study(**SMALL, gates=["none", "se"], folds=3).plan()
    repeats = [(run.recipe.seed, run.recipe.folds, run.recipe.fold) for run in plan]
    assert repeats == [(0, 3, fold) for fold in (1, 1, 2, 2, 3, 3)]
    assert [run.repeat for run in plan[::2]] == ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3"]
    assert len({run.key for run in plan}) == 6
    assert {run.recipe.seed for run in Study(**SMALL, folds=3, seeds=[7]).plan()} == {7}
    (tmp_path / "recipe.yaml").write_text("{epochs: 1, folds: 4, fold: 2}")
    plan = Study(models="resnet8", config=str(tmp_path / "recipe.yaml"), seeds=2).plan()
    assert {run.recipe.fold for run in plan} == {None}


def test_folds_replace_the_seeds_of_a_study_and_seeds_its_folds(tmp_path):
    (tmp_path / "study.yaml").write_text("{folds: 5, small: {seeds: 1}}")
    study = str(tmp_path / "study.yaml")
    for chosen, repeats in (
        (load_study("quick", folds=4), (None, 4)),
        (load_study(study), (None, 5)),
        (load_study(study, seeds=2), (2, None)),
        (load_study(study, small=True), (1, None)),
        (load_study(study, small=True, folds=3), (None, 3)),
    ):
        assert (chosen.seeds, chosen.folds) == repeats
    assert len(load_study(None).plan()) == 6


def test_cross_stands_for_one_value_of_each_combination():
    crossed = {"gate": "spem", "cross": {"pool": ["max", "min"], "excitation": [True, False]}}
    assert rows(gates=crossed) == [
        "spem pool=max excitation=True",
        "spem pool=max excitation=False",
        "spem pool=min excitation=True",
        "spem pool=min excitation=False",
    ]
    assert rows(gates=crossed | {"label": "s"})[0] == "s pool=max excitation=True"


def test_overrides_are_an_axis_and_name_their_rows():
    assert rows(gates=["none", "se"], overrides=[{"lr": 0.1}, {"lr": 0.2, "label": "fast"}]) == [
        "none, lr=0.1",
        "se, lr=0.1",
        "none, fast",
        "se, fast",
    ]


def test_keys_of_a_model_stand_over_those_of_all_and_given_ones_over_both():
    study = Study(
        models={"model": "resnet8", "label": "eight", "lr": 0.3},
        recipe={"lr": 0.2, "epochs": 4},
        gates="none",
        seeds=1,
    )
    (run,) = study.plan()
    assert (run.model, run.recipe.lr, run.recipe.epochs) == ("eight", 0.3, 4)
    (run,) = study.plan(lr=0.5)
    assert run.recipe.lr == 0.5


def test_no_flag_makes_the_name_of_a_row_untrue():
    for keys in ({"overrides": {"lr": 0.1}}, {"models": {"model": "resnet8", "lr": 0.1}}):
        with pytest.raises(
            ValueError, match=r"lr is part of the name .*lr=0\.1': leave out its flag"
        ):
            Study(**{"models": "resnet8"} | keys).plan(lr=0.5)


def test_the_example_of_the_documentation_is_sound(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to-compare.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "study.yaml").write_text(text)
    for small, runs in ((False, 60), (True, 12)):
        assert len(load_study(str(tmp_path / "study.yaml"), small).plan()) == runs


def test_the_baseline_is_the_first_gate_a_named_row_or_that_of_the_entry():
    def against(**keys):
        return {run.row: run.against for run in Study(**SMALL, seeds=1, **keys).plan()}

    assert against(gates=["none", "se"]) == {"none": None, "se": "none"}
    assert against(gates=["none", "se"], baseline="se") == {"none": "se", "se": None}
    rates = {"overrides": [{"lr": 0.1}, {"lr": 0.2}]}
    assert against(gates=["none", "se"], **rates) == {
        "none, lr=0.1": None,
        "se, lr=0.1": "none, lr=0.1",
        "none, lr=0.2": None,
        "se, lr=0.2": "none, lr=0.2",
    }
    assert against(gates="se", **rates) == {"se, lr=0.1": None, "se, lr=0.2": "se, lr=0.1"}
    own = {"gate": "eca", "against": "se"}
    assert against(gates=["none", "se", own]) == {"none": None, "se": "none", "eca": "se"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gates": []}, "the grid is empty: it has no gate"),
        ({"models": []}, "the grid is empty: it has no model"),
        ({"data": []}, "the grid is empty: it has no data"),
        ({"seeds": 0}, "seeds must be a number from 1 to 10,000 or a list of seeds, got 0"),
        ({"seeds": []}, "got []"),
        ({"seeds": [0, 1, 0]}, "seeds are repeated: 0"),
        ({"folds": 1}, "folds must be a whole number from 2 to 1,000, got 1"),
        ({"folds": 5, "seeds": 2}, "seeds must be a single one with folds, such as 1 or [7]"),
        ({"recipe": {"folds": 2}}, "folds has an axis of its own in a study"),
        ({"seeds": [-1]}, "seed must be a whole number from 0 to 2^32 - 1, got -1"),
        ({"gates": ["se", "se"]}, "'se' of resnet8 on digits with seed 0 are the same run"),
        ({"gates": ["se", {"gate": "se", "label": "again"}]}, "'again' of resnet8 on digits"),
        (
            {"gates": [{"gate": "se", "label": "x"}, {"gate": "eca", "label": "x"}]},
            "both called 'x' of resnet8 on digits with seed 0: give them labels",
        ),
        ({"gates": 3}, "gate must be a name or a mapping that holds one, got 3"),
        ({"gates": {"pool": "max"}}, "gate must be a name or a mapping that holds one"),
        ({"models": 20}, "model must be a name or a mapping that holds one, got 20"),
        ({"models": {"label": "x"}}, "model must be a name"),
        ({"models": {"model": "resnet8", "seed": 3}}, "seed has an axis of its own in a study"),
        ({"recipe": {"gate": "se"}}, "gate has an axis of its own in a study"),
        ({"recipe": {"replicas": 2}}, "replicas has an axis of its own"),
        ({"recipe": {"epoch": 2}}, "unknown recipe key 'epoch'; known: epochs"),
        ({"recipe": 5}, "recipe must be a mapping of texts to values, got 5"),
        ({"baseline": "sa"}, "unknown row to compare with 'sa'; known: "),
        ({"method": "sa"}, "unknown gate or row of method 'sa'; known: "),
        ({"method": [1]}, "method must be a name or a list of names, got [1]"),
        ({"gates": {"gate": "se", "cross": {"mix": 0.1}}}, "cross must map keys to lists"),
        ({"gates": {"gate": "se", "cross": {"mix": []}}}, "cross must map keys to lists"),
        ({"config": "papr"}, "unknown recipe 'papr'; known: paper"),
    ],
)
def test_a_study_with_a_mistake_is_refused_in_one_sentence(keys, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Study(**SMALL | keys).plan()
    assert "\n" not in str(error.value)


def test_a_study_file_with_an_unknown_key_names_the_known_ones(tmp_path):
    for text in ("gate: [se]\n", "small: {gate: [se]}\n"):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match="unknown study key 'gate'; known: gates"):
            load_study(str(path))


def test_study_files_that_are_none():
    with pytest.raises(FileNotFoundError, match=r"there is no study file nothing\.yaml"):
        load_study("nothing.yaml")
    with pytest.raises(ValueError, match="unknown study 'poling'; known: pooling"):
        load_study("poling")
    with pytest.raises(ValueError, match="this comparison has no small form"):
        load_study(None, small=True)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", study_names())
def test_shipped_studies_are_sound(name, small):
    study = load_study(name, small)
    plan = study.plan()
    assert study.title
    assert study.question
    known = {"digits"} if small else {"cifar10", "cifar100"}
    known = {"finetune": {"photographs"}, "imagenet-attention": {"imagenet"}}.get(name, known)
    assert {run.recipe.data for run in plan} <= known
    assert any(run.against for run in plan)


def test_the_four_studies_of_the_paper_have_what_they_ask():
    paper = load_study("paper").plan()
    assert {"none", "se", "spem"} <= {run.row for run in paper}
    assert {run.recipe.data for run in paper} == {"cifar10", "cifar100"}
    assert {run.model for run in paper} == {"resnet164"}
    assert all(run.recipe.epochs == 164 for run in paper)
    pooling = {str(sorted(c.recipe.gate_options.items())) for c in load_study("pooling").plan()}
    assert len(pooling) == 15  # average, three others, and eleven mixtures
    options = [c.recipe.gate_options for c in load_study("ablation").plan() if c.recipe.gate]
    assert {o["alpha"] for o in options if "alpha" in o} == {0, 0.01, 1}
    parts = {
        (o.get("pool", "adaptive"), o.get("excitation", True), o.get("reweighting", True))
        for o in options
    }
    assert len({part for part in parts if part[0] != "fixed"}) == 16  # 4 x 2 x 2
    models = {run.recipe.model for run in load_study("backbones").plan()}
    wanted = "resnet20 resnet56 resnet83 resnet110 resnet164 preresnet164 vgg16 densenet100"
    assert models == set(wanted.split())


def test_the_runs_on_a_folder_are_planned_before_its_mean_is_known():
    (run,) = Study(data="no/such/folder", gates="none", seeds=1).plan()
    assert run.recipe.mean is run.recipe.std is None


def test_the_key_is_that_of_what_decides_a_run_and_of_nothing_else():
    recipe = load_recipe("digits")
    elsewhere = {"data_dir": "x", "download": True, "device": "cpu", "threads": 7}
    elsewhere |= {"progress": False, "logger": "wandb", "init": "identity"}
    elsewhere |= {"import_": ["mine.py"], "checkpoint_minutes": 5.0}
    elsewhere |= {"loader": "stream", "workers": 3}
    assert set(elsewhere) == set(FREE_KEYS)
    assert record_key(replace(recipe, **elsewhere)) == record_key(recipe)
    assert record_key(replace(recipe, seed=1)) != record_key(recipe)
    assert record_key(replace(recipe, gate_options={"alpha": 0.2})) != record_key(recipe)


def test_keys_stay_those_of_comparisons_that_were_begun_earlier():
    plan = Study(models="resnet8", gates=["none", "spem"], seeds=1).plan(init="paper")
    assert [run.key for run in plan] == ["1805bf4c87b03d36", "1cec3d96295b378a"]
    assert load_study("ablation").plan()[0].key == "cf4e5e51d3d34f47"


# Each folder of records, the study that made it, whether in its small form.
RECORDED = {
    "cifar10-quick": ("quick", False),
    "digits-ablation": ("ablation", True),
    "digits-backbones": ("backbones", True),
    "digits-paper": ("paper", True),
    "digits-pooling": ("pooling", True),
}


@pytest.mark.parametrize("folder", RECORDED)
def test_the_shipped_studies_take_up_the_records_made_by_earlier_versions(folder):
    records = Ledger(RESULTS / folder).records
    plan = load_study(*RECORDED[folder]).plan()
    assert records
    assert records.keys() <= {run.key for run in plan}
    left = {run.row for run in plan if run.key not in records}
    assert left == ({"spem init=identity"} if folder == "cifar10-quick" else set())


def test_records_of_other_studies_are_taken_up_where_the_study_names_its_starts():
    gates = ["none", {"gate": "se", "init": "paper", "label": "se"}]
    recipe = {"epochs": 20, "precision": "bf16-mixed"}
    study = Study(config="cifar_quick", recipe=recipe, data="cifar10", gates=gates, seeds=1)
    recorded = Ledger(RESULTS / "cifar10-twenty").records
    assert {run.key for run in study.plan()} <= recorded.keys()


def test_a_start_is_an_option_of_gates_that_have_one_and_name_none():
    gates = ["none", "spem", {"gate": "spem", "init": "paper", "label": "authors"}, "gct"]
    runs = Study(models="resnet8", gates=gates, seeds=1).plan(init="identity")
    options = {run.gate: run.recipe.gate_options for run in runs}
    assert options["none"] == {}
    assert options["spem"] == {"init": "identity"}
    assert options["authors"] == {"init": "paper"}
    assert all("init" not in deciding_keys(run.recipe) for run in runs)
