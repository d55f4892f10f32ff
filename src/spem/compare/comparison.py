"""`spem compare`: its flags, and what follows from them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shlex import join
from typing import Any, Literal

Launcher = Literal["local", "ray"]
_LISTS = ("gates", "model", "data", "overrides")  # flags of several words


def compare(
    recipe_keys: dict[str, Any],
    *,
    out: str,
    study: str | None = None,
    small: bool = False,
    gates: Sequence[str] = (),
    model: Sequence[str] = (),
    data: Sequence[str] = (),
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    folds: int | None = None,
    config: str | None = None,
    jobs: int = 1,
    launcher: Launcher = "local",
    address: str | None = None,
    costs: bool = True,
) -> int:
    """Train a grid of networks with several seeds or folds each, and keep a record of each run.

    The same command continues: finished runs are never run again, and those that were interrupted
    or killed resume. When all are finished, speed and memory are measured. `spem report` makes the
    page.

    Args:
        recipe_keys: recipe keys that hold for all runs.
        out: folder of the comparison; must be given.
        study: a bundled study (quick, finetune, imagenet-attention, paper, pooling, ablation,
            backbones) or a YAML file.
        small: take the study's small form, which needs minutes on a CPU and no download.
        gates: gates to compare; the first is the baseline. Each a name, none, or a mapping like
            '{gate: se, pool: fixed, mix: 0.3, label: mixed}'.
        model: networks, each a name or a mapping like '{model: vgg16, weight_decay: 5e-4}'.
        data: data sets, each a name or a mapping like '{data: digits, image_size: 32}'.
        overrides: mappings of recipe keys, one run of each, like '{lr: 0.05}'.
        seeds: number of seeds, counted from 0.
        folds: in place of seeds, for few images: number of equal parts of them, stratified by
            class; each is the test split of one run, so that every image is measured once.
        config: a bundled recipe or a YAML file; if not given: that of the study, else digits for
            the digits and cifar_quick for any other data.
        jobs: runs at once on this machine. They share the cores.
        launcher: local or ray.
        address: of the Ray cluster; if not given: one on this machine.
        costs: measure speed and memory when all runs are finished.
    """
    from spem.compare.runner import run_comparison
    from spem.compare.study import load_study

    axes = {"gates": gates, "model": model, "data": data, "overrides": overrides}
    given: dict[str, Any] = {key: [*map(_read_word, words)] for key, words in axes.items() if words}
    if model:
        given["models"] = given.pop("model")
    others = {"seeds": seeds, "folds": folds, "config": config}
    given |= {key: value for key, value in others.items() if value is not None}
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, must be at least 1")
    if address is not None and launcher != "ray":
        raise ValueError(f"address belongs to the launcher ray, not to {launcher!r}")
    launch = _choose_launcher(launcher, jobs, address)
    if gates:
        given["method"] = None
    chosen = load_study(study, small, **given)
    plan = chosen.plan(**recipe_keys)
    flags = {"study": study, "small": small or None, **axes, **others}
    flags = {key: value for key, value in flags.items() if value is not None}
    # A study whose grid was changed no longer answers its question.
    question = None if any(axes.values()) else chosen.question
    about: dict[str, Any] = {"title": chosen.title, "question": question}
    if chosen.methods:
        about["method"] = chosen.methods
    about |= {"commands": [_write_command(flags | recipe_keys, out)]}
    return run_comparison(plan, Path(out), launch, jobs=jobs, costs=costs, about=about)


def _read_word(text: str) -> Any:
    """Return the value that a word of the command line stands for: a mapping, or a name."""
    from spem._yaml import parse_yaml

    return parse_yaml(text, text) if text.lstrip().startswith("{") else text


def _choose_launcher(name: str, jobs: int, address: str | None) -> Callable[..., None]:
    import torch.distributed

    from spem.compare import launchers

    if torch.distributed.is_torchelastic_launched():
        if name != "local" or jobs != 1:
            raise ValueError("under torchrun its processes share each run: --jobs 1, no launcher")
        return launchers.run_here
    if name == "ray":
        return partial(launchers.run_ray, address=address)
    return partial(launchers.run_local, jobs=jobs)


def _write_command(flags: dict[str, Any], out: str) -> str:
    """Return the command line that makes the same comparison."""
    words = ["spem", "compare"]
    for key, value in flags.items():
        if isinstance(value, list | tuple) and not value:
            continue
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif key == "import":
            words += [word for file in value for word in (flag, file)]
        else:
            values = value if key in _LISTS else ["none" if value is None else value]
            words += [flag, *map(str, values)]
    return join([*words, "--out", out])
