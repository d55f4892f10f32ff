"""Values that nobody should give, and what must come of them: a result, or one clear sentence."""

import re
import warnings
from pathlib import Path

import numpy as np
import torch
from limits import limits

VALUES = [
    *(None, True, False, 0, 1, 2, 3, 4, 7, 8, 16, 64, -1, 999, 1000, 2**16, 2**31, 2**63, 10**9),
    *(10**400, -(10**400), 0.0, 0.5, 1.0, -0.5, 1e-320, 1e308, -0.0, 0j),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "nan", "none", "avg", "max", "adaptive", "fixed", "srp", "sigmoid", "figure", "paper"),
    *("identity", "top16", "low8", "top33", "icme-a", "tmm-c", "se", "sem", "both", b"se"),
    *("x\x1b[31m", "x" * 10_000, Path("x"), [], {}, (), set(), [1], [None], (1, 2), range(10**9)),
    *({"a": 1}, {1: 2}, {"init": 3}, {"reduction": 4}, ("avg", "max"), ["avg", []], object()),
    *(np.int64(4), np.float32(0.5), np.zeros(2), torch.tensor(3), torch.zeros(2, 2), torch.float32),
    *(torch.ones(2), torch.ones(1, device="meta"), len, int),
]
# Says what is allowed, or what one can do.
_REMEDY = re.compile(
    r"must|known: |needs?\b|belongs? |at least|at most|only|give |leave |no module|holds no|"
    r"matches no|not allowed|cannot|has no |have no |already|is taken|lacks?\b|load |another|"
    r"would lose|are not those|is neither|is not \dn"
)


def refuse(error, words, names):
    """Check that an error is one short sentence that names one of the arguments and the remedy."""
    # Python's own sentence for a name that a function does not have, and for one that is missing.
    if isinstance(error, TypeError) and re.search("keyword argument|positional arg", str(error)):
        return
    if isinstance(error, OSError | ImportError):
        assert len(str(error)) < 600, words
        return
    if type(error) is not ValueError:
        raise AssertionError(f"{words}: {error!r}"[:2000]) from error
    text = str(error)
    assert re.fullmatch(r"[^\n\x1b]{1,400}", text), f"{words}: {text}"
    assert _REMEDY.search(text), f"{words}: no remedy: {text}"
    assert any(name in text for name in names), f"{words}: no name: {text}"


def attempt(call, words, names):
    """Call, within the limits; return what it gives, or None where it was refused."""
    with limits(words), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except Exception as error:
            refuse(error, words, names)
    return None
