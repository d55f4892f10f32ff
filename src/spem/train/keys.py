"""The types of a recipe's keys: which values each allows."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from spem._schema import OPTIONS, Allowed, number, whole

_FACTOR = number(0, 1e6)
# Arguments of networks and gates that are not options of a gate: other keys of a recipe set them.
_RESERVED = ("name", "gate", "num_classes", "in_channels", "channels")
_RESERVED += ("block", "placement", "at", "mask", "pretrained", "dropout", "drop_path")

if TYPE_CHECKING:
    BatchSize = int  # of a run that is ready: `auto` is replaced by the number found
else:
    _COUNT = whole(1, 10**6)
    BatchSize = Annotated[
        int | Literal["auto"],
        Allowed(f"{_COUNT.words}, or auto", lambda v: v == "auto" or _COUNT.accepts(v)),
    ]
OptimizerName = Literal["sgd", "adamw", "muon"]
Schedule = Literal["step", "cosine", "onecycle", "constant"]
# At their end the rate is next to zero, so a run cannot go on with them to more epochs.
ENDING = ("cosine", "onecycle")
LossName = Literal["ce", "bce"]
ClassWeights = Literal["balanced"]
Precision = Literal["auto", "32", "bf16-mixed", "16-mixed"]
Init = Literal["paper", "identity"]
Device = Literal["auto", "cpu", "cuda", "mps"]
OnBadImage = Literal["raise", "skip"]
Loader = Literal["memory", "stream"]
OnNonfinite = Literal["stop", "skip"]
LoggerName = Literal["csv", "tensorboard", "wandb"]
_ALPHA = number(0.01, 100)
Alpha = Annotated[
    float,
    Allowed(
        "0, or a number from 0.01 to 100", lambda v: number(0, 0).accepts(v) or _ALPHA.accepts(v)
    ),
]
PARTS = ("backbone", "gates", "classifier")
Factors = Annotated[
    dict[str, float],
    Allowed(
        f"a mapping of {', '.join(PARTS)} to numbers from 0 to 1e+06",
        lambda v: (
            isinstance(v, dict) and {*v} <= {*PARTS} and all(map(_FACTOR.accepts, v.values()))
        ),
    ),
]
GateOptions = Annotated[
    dict[str, Any],
    Allowed(
        f"a mapping whose keys are texts other than {', '.join(_RESERVED)}",
        lambda v: OPTIONS.accepts(v) and not {*v} & {*_RESERVED},
    ),
]
