"""Damaged copies of real files: bytes that were changed, and values that were replaced."""

import json
from copy import deepcopy

# What stands where something else is expected. JSON and YAML can hold all of it.
NASTY = [
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "x", "none", "nan", "1e5", "../../etc/passwd", "a\0b"),
    *("[bold]", "\x1b[31m", "é" * 300, "x" * 10_000, [], {}, [[]], [None], [1, "a"], {"": None}),
    *(
        {"a": {"b": {}}},
        [0] * 5000,
        {str(i): i for i in range(2000)},
        "resnet99999998",
        "se",
        "cbam",
    ),
    *("resnet20", "digits", "!!python/name:os.system", [["x"] * 3] * 3, 7.0, "0", "-1", "10**10"),
]


def nested(depth):
    """A list in a list in a list …"""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def mutate_bytes(draw, content, other):
    """Return bytes with up to four changes, some with a piece of another file.

    Args:
        draw: `random.Random`.
        content: the file.
        other: a second one.
    """
    found = bytearray(content)
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        if not found:
            found += b"\0"
        at = draw.randrange(len(found))
        length = draw.choice((1, 1, 2, 4, 8, 64, 1000))
        kind = draw.randrange(8)
        if kind == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at : at + length] = draw.randbytes(length)
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length] * draw.choice((1, 2, 50))
        elif kind == 4:
            del found[at:]
        elif kind == 5:
            start = draw.randrange(max(1, len(other)))
            found[at : at + length] = other[start : start + length]
        elif kind == 6:
            found[at : at + length] = draw.choice((b"\xff", b"\0", b"\x7f", b"9", b"[")) * length
        else:
            found[at : at + 4] = draw.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)).to_bytes(
                4, draw.choice(("little", "big"))
            )
    return bytes(found)


def mutate_value(draw, value):
    """Return a copy of a mapping with up to three of its values, keys or items changed.

    Args:
        draw: `random.Random`.
        value: of mappings, lists, texts and numbers.
    """
    found = deepcopy(value)
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        place = _pick_container(draw, found)
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        kind = draw.randrange(6)
        if kind == 0:
            del place[key]
        elif kind == 1:
            place[key] = nested(draw.choice((5, 50, 400)))
        elif kind == 2 and isinstance(place, dict):
            place[draw.choice(("x", "seed", "gate", "import", "a.b", ""))] = place.pop(key)
        elif kind == 3 and type(place[key]) in (int, float) and abs(place[key]) < 1e300:
            place[key] = draw.choice((-place[key], place[key] * 1000, place[key] + 0.5, str(key)))
        else:
            place[key] = deepcopy(draw.choice(NASTY))
        if not found:
            break
    return found


def _pick_container(draw, value):
    """Return a mapping or list within a value that is not empty, the outermost most often."""
    while True:
        inner = value.values() if isinstance(value, dict) else value
        inner = [each for each in inner if isinstance(each, dict | list) and each]
        if not inner or draw.random() < 0.4:
            return value
        value = draw.choice(inner)


def dump(value):
    """Return a value as JSON, which is YAML as well, infinite numbers and huge ones included."""
    return json.dumps(value)
