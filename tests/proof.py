"""Shares of long proofs: which of their numbered cases a test makes, with which random numbers.

`make test` makes a few cases of each proof. `make test-hard` makes a share of them, 2 % unless
SHARE says otherwise: `make test-hard SHARE=2-10` makes the cases from 2 % to 10 %, so that ranges
one after the other reach the full count. SEED=… draws other cases.
"""

import os
import random
from itertools import pairwise

import pytest

SEED = int(os.environ.get("SEED", "0"))
_FROM, _TO = map(float, os.environ.get("SHARE", "0-2").split("-"))
# So that several processes share the cases of one proof.
_PARTS = 4


def cases(total, few):
    """Return values for `pytest.mark.parametrize`: ranges of the numbers of cases.

    Args:
        total: cases of the whole proof.
        few: number of those of `make test`, perhaps 0; the ranges of the share are `hard`.
    """
    first, last = round(total * _FROM / 100), round(total * _TO / 100)
    bounds = [first + (last - first) * part // _PARTS for part in range(_PARTS + 1)]
    parts = [range(a, b) for a, b in pairwise(bounds) if a < b]
    hard = [pytest.param(p, marks=pytest.mark.hard, id=f"{p.start}-{p.stop}") for p in parts]
    return [*([pytest.param(range(few), id="few")] if few else []), *hard]


def numbers_of(case):
    """Return the random numbers of a case, which depend on SEED and its number alone."""
    return random.Random(f"{SEED}/{case}")
