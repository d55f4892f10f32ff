"""Pickles of plain data are read; hostile ones are refused at once, with nothing run or built."""

import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest

from spem.data.pickles import read_pickle


class Attributes:
    """Pickles as a function of the library's that is given attributes."""

    def __reduce__(self):
        return (eval, ("__import__('os').abort()",))


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


NAMES = text(b"numpy") + text(b"ndarray") + b"\x93"
ARRAY = (
    text(b"numpy.core.multiarray") + text(b"_reconstruct") + b"\x93(" + NAMES + b"K\x00\x85C\x01btR"
)
DTYPE = text(b"numpy") + text(b"dtype") + b"\x93(" + text(b"u1") + b"K\x00K\x01tR"


def state(shape, data):
    return b"(K\x01" + shape + DTYPE + b"\x89" + data + b"t"


def pickled(value, items=b""):
    return b"\x80\x04}" + text(b"data") + value + b"s" + items + b"."


LARGE = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x00"


def array_again(index):
    """A further array, of the bytes of the first."""
    data = b"h\x00" if index else LARGE
    return text(b"%d" % index) + ARRAY + state(b"J\x00\x00\x10\x00\x85", data) + b"bs"


HOSTILE = {
    "code": pickle.dumps({"data": Attributes()}),
    "nested lists": b"\x80\x04" + b"(" * 10**5 + b"l" * 10**5 + b".",
    "nested lists, appended": b"\x80\x04}"
    + text(b"data")
    + b"]" * 10**5
    + b"a" * (10**5 - 1)
    + b"s.",
    "nested tuples": b"\x80\x04" + b")" + b"\x85" * 10**5 + b".",
    "nested dictionaries": b"\x80\x04" + b"}" * 10**5 + (text(b"a") + b"}s") * 10 + b".",
    "a list in itself": b"\x80\x04}" + text(b"data") + b"]q\x00h\x00as.",
    "a far memo": pickled(b"K\x01r\xff\xff\xff\xff" + b"j\xfe\xff\xff\xff"),
    "a memo that is not there": pickled(b"h\x07"),
    "an array many times": b"\x80\x04}" + b"".join(map(array_again, range(2000))) + b".",
    "a huge shape": pickled(ARRAY + state(2 * b"J\xff\xff\xff\x7f" + b"\x86", b"C\x01a") + b"b"),
    "an object array": pickled(text(b"numpy") + text(b"dtype") + b"\x93(" + text(b"O8") + b"tR"),
    "attributes of a function": pickled(text(b"_codecs") + text(b"encode") + b"\x93}b"),
    "attributes of a list": pickled(b"]}b"),
    "a call of a text": pickled(text(b"x") + b")R"),
    "a call of the class": pickled(NAMES + b")R"),
    "a text times a number": pickled(text(b"numpy") + text(b"dtype") + b"\x93(K\x07tR"),
    "a key that is a tuple": b"\x80\x04}K\x01\x85K\x01s.",
    "a key that is a list": b"\x80\x04}]K\x01s.",
    "an extension code": pickled(b"\x82\x01"),
    "a persistent name": pickled(b"Pname\n"),
    "an object by class": pickled(b"(cos\nsystem\no"),
    "an instance": pickled(b"(ios\nsystem\n"),
    "a new object": pickled(NAMES + b")\x81"),
    "a set": pickled(b"\x8f"),
    "a huge number": pickled(b"L" + b"9" * 10**5 + b"L\n"),
    "a length beyond the end": pickled(b"B\xff\xff\xff\x7fabc"),
    "a long length": pickled(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc"),
    "a negative length": pickled(b"T\xff\xff\xff\xffabc"),
    "an empty stack": b"\x80\x04a.",
    "no mark": b"\x80\x04]e.",
    "a number alone": b"\x80\x04K\x01.",
    "a list alone": pickle.dumps([1]),
    "two results": b"\x80\x04}}.",
    "no end": b"\x80\x04}",
    "a newer protocol": b"\x80\xff}.",
    "nothing": b"",
    "text": b"hello",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_at_once(kind):
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the caller of `read_pickle` takes all)
        read_pickle(HOSTILE[kind])
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not isinstance(caught.value, MemoryError | RecursionError)
    assert seconds < 2 * (1 + len(HOSTILE[kind]) / 1e5)  # beside other work, under a profiler
    assert peak < 10 * len(HOSTILE[kind]) + 10**7


@pytest.mark.parametrize("protocol", range(5))
def test_plain_data_of_every_protocol_is_read(protocol):
    data = {
        "a": [1, 2, -3, 2**40],
        b"b": "text \u00e9",
        "c": 1.5,
        "d": None,
        "e": [b"x", "y"],
        "f": True,
    }
    if protocol < 3:
        data[b"b"] = "text"
    assert read_pickle(pickle.dumps(data, protocol)) == data
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    if protocol >= 1:
        found = read_pickle(pickle.dumps({"data": pixels, "again": pixels}, protocol))
        assert found["data"].tolist() == pixels.tolist()
        assert found["again"] is found["data"]
