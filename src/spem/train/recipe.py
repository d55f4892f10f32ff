"""Recipes: everything that decides a training run, as one checked record and as YAML."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from typing import Any, Literal, get_args

from spem._extras import needs_extra
from spem._messages import unknown
from spem._yaml import read_yaml, shipped_names

with needs_extra("train"):
    import yaml

_RECIPES = resources.files("spem.train") / "recipes"

Schedule = Literal["step", "cosine", "constant"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run; the command's flags and the YAML keys are its fields.

    Args:
        model: name of the network: resnet20, preresnet110, vgg16, densenet100, attention56 …
        block: of (pre-activation) ResNets: basic or bottleneck; none: what the depth suggests.
        gate: name of the channel attention; none: no attention.
        gate_options: keyword arguments of the gate, for example `{alpha: 0.1}`.
        placement: residual, conv, norm or last-stage; none: what the gate's authors do.
        mask: 0 or 1 for every place of a gate, in order; none: gates at all of them.
        weights: a `.safetensors` file or the folder of a run to start from.
        data: digits, cifar10, cifar100, or the path of an image folder.
        data_dir: folder below which the data sets lie.
        download: fetch the data set when it is absent.
        image_size: side to which images are brought, in pixels; none: the data's own size.
        validation: fraction of the training images held out; none: no validation split.
        mean: subtracted from pixels in [0, 1], one number a channel; none: 0.5.
        std: divides them afterwards, one number a channel; none: 0.5.
        crop: zero padding of the random crop, in pixels; 0: no crop.
        flip: mirror half of the training images.
        epochs: passes over the training images.
        batch_size: images of one optimisation step, over all devices and micro-batches.
        lr: highest learning rate.
        momentum: momentum of SGD.
        nesterov: Nesterov's form of the momentum.
        weight_decay: L2 penalty on every parameter but those that a gate's authors exempt
            (`Attention.no_weight_decay`).
        schedule: step (times `gamma` at `milestones`), cosine (to zero) or constant.
        milestones: epochs, counted from 0, before which the rate is multiplied by `gamma`.
        gamma: factor of the step schedule.
        warmup_epochs: epochs in which the rate climbs linearly to `lr`; may be fractional.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        clip_gradient: largest norm of the whole gradient; none: no clipping.
        ema: decay of the averaged weights, in (0, 1), which then are evaluated and stored.
        accumulate: micro-batches whose gradients make one step; at most `batch_size`.
        precision: 32, bf16-mixed or 16-mixed.
        channels_last: keep maps in the NHWC memory format.
        compile: pass the network through torch.compile.
        cuda_graph: replay the training step as one CUDA graph, so that launching its many small
            operations costs nothing; one CUDA device, and a network without dropout.
        sync_batchnorm: share batch statistics between devices.
        device: auto, cpu, cuda or mps.
        devices: number of devices, one process each.
        threads: CPU threads, over all processes.
        seed: fixes the initial weights, the validation split, the order and the augmentation.
        replicas: runs of the seeds `seed`, `seed` + 1 … that are trained in turn on one device,
            each as it would be alone.
        progress: show a progress bar.

    Raises:
        ValueError: a value is not allowed.
    """

    model: str = "resnet20"
    block: str | None = None
    gate: str | None = None
    gate_options: dict[str, Any] = field(default_factory=dict)
    placement: str | None = None
    mask: list[int] | None = None
    weights: str | None = None
    data: str = "digits"
    data_dir: str = "data"
    download: bool = False
    image_size: int | None = None
    validation: float | None = 0.1
    mean: list[float] | None = None
    std: list[float] | None = None
    crop: int = 0
    flip: bool = False
    epochs: int = 15
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    clip_gradient: float | None = None
    ema: float | None = None
    accumulate: int = 1
    precision: Precision = "32"
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    sync_batchnorm: bool = False
    device: Device = "auto"
    devices: int = 1
    threads: int = 2
    seed: int = 0
    replicas: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        for allowed, accepts, names in _RULES:
            for name in names.split():
                value = getattr(self, name)
                if not accepts(value) and not (value is None and name in _OPTIONAL):
                    raise ValueError(f"{name} must be {allowed}, got {value!r}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate must be at most batch_size ({self.batch_size}), got {self.accumulate}"
            )
        self._check_one_device()
        if self.nesterov and self.momentum == 0:
            raise ValueError("momentum must be above 0 with nesterov, got 0")

    def _check_one_device(self) -> None:
        for name, wanted in (("cuda_graph", self.cuda_graph), ("replicas", self.replicas > 1)):
            if wanted and self.devices > 1:
                raise ValueError(f"devices must be 1 with {name}, got {self.devices}")
        if self.cuda_graph and self.device not in ("auto", "cuda"):
            raise ValueError(f"device must be auto or cuda with cuda_graph, got {self.device!r}")
        if self.cuda_graph and self.precision == "16-mixed":
            raise ValueError(
                "precision must be 32 or bf16-mixed with cuda_graph, got '16-mixed', whose loss"
                " scaling waits for the device at every step"
            )

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML that `load_recipe` reads back to an equal one."""
        return yaml.safe_dump(asdict(self), sort_keys=False, default_flow_style=None)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)


def _all(accepts: Callable[[Any], bool], values: object) -> bool:
    return isinstance(values, list) and all(map(accepts, values))


_OPTIONAL = {f.name for f in fields(Recipe) if type(None) in get_args(f.type)}
_CHOICES = {
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "device": get_args(Device),
}
# What the axes of a comparison decide, or what makes several runs of one.
AXES = ("model", "gate", "gate_options", "data", "seed", "replicas")
# What the networks say to their gates themselves, and what recipes have keys of their own for.
_ARGUMENTS = [
    "name",
    "gate",
    "num_classes",
    "in_channels",
    "channels",
    "block",
    "placement",
    "mask",
    "pretrained",
]
_RULES: Iterable[tuple[str, Callable[[Any], bool], str]] = [
    ("a text", lambda v: isinstance(v, str), "model block gate placement weights data data_dir"),
    (
        f"a mapping whose keys are texts other than {', '.join(_ARGUMENTS)}",
        lambda v: (
            isinstance(v, dict) and all(isinstance(k, str) and k not in _ARGUMENTS for k in v)
        ),
        "gate_options",
    ),
    ("a list of 0 and 1", lambda v: _all(lambda n: _is_int(n) and n in (0, 1), v), "mask"),
    (
        "true or false",
        lambda v: isinstance(v, bool),
        "download flip nesterov channels_last compile cuda_graph sync_batchnorm progress",
    ),
    (
        "a whole number of at least 1",
        lambda v: _is_int(v) and v >= 1,
        "image_size epochs batch_size accumulate devices threads replicas",
    ),
    ("a whole number of at least 0", lambda v: _is_int(v) and v >= 0, "crop seed"),
    ("a number above 0", lambda v: _is_number(v) and v > 0, "lr gamma clip_gradient"),
    (
        "a number of at least 0",
        lambda v: _is_number(v) and v >= 0,
        "weight_decay warmup_epochs",
    ),
    ("in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1, "momentum label_smoothing"),
    ("in (0, 1)", lambda v: _is_number(v) and 0 < v < 1, "validation ema"),
    ("a list of numbers", lambda v: _all(_is_number, v), "mean"),
    ("a list of numbers above 0", lambda v: _all(lambda n: _is_number(n) and n > 0, v), "std"),
    (
        "a list of ascending whole numbers above 0",
        lambda v: _all(_is_int, v) and v == sorted({n for n in v if n > 0}),
        "milestones",
    ),
]


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return shipped_names(_RECIPES)


def load_recipe(name_or_path: str, **overrides: Any) -> Recipe:
    """Return a shipped recipe, or one read from a YAML file, with some keys replaced.

    The text "none" stands for None. A `gate` that replaces another one starts without the
    other's `gate_options`, `placement` and `mask`.

    Args:
        name_or_path: one of `recipe_names()`, or a file whose keys are fields of `Recipe`.
        **overrides: values that replace those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown recipe or key, a value that is not allowed, or no valid YAML.
    """
    settings = read_yaml(name_or_path, "recipe", _RECIPES)
    if overrides.get("gate", settings.get("gate")) != settings.get("gate"):
        settings |= {"gate_options": {}, "placement": None, "mask": None}
    settings |= overrides
    known = [f.name for f in fields(Recipe)]
    for key in settings:
        if key not in known:
            raise unknown("recipe key", key, known)
    values: dict[str, Any] = {k: None if v == "none" else v for k, v in settings.items()}
    return Recipe(**values)
