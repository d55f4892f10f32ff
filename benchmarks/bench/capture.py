"""Work in one CUDA graph, and work that Dynamo compiles anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from spem.compare.timing import RedCaseError
from spem.train.devices import record_graph

_WARM_UP = 2


def captured(run: Callable[[], object]) -> Callable[[], None]:
    """Return what replays a function as one CUDA graph, which reads and writes where it did."""
    stream = _capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
        replay = record_graph(run)
    torch.cuda.current_stream().wait_stream(stream)
    return replay


@cache
def _capture_stream() -> torch.cuda.Stream:
    # One for all graphs, see `record_graph`.
    return torch.cuda.Stream()


@contextmanager
def fresh_dynamo() -> Iterator[None]:
    """Start from a reset Dynamo and refuse its recompile limit.

    Past the limit Dynamo otherwise runs in eager mode, with a mere warning.

    Raises:
        RedCaseError: the limit was reached inside.
    """
    from torch import _dynamo as dynamo  # heavy, and no other command needs it
    from torch._dynamo.exc import FailOnRecompileLimitHit

    dynamo.reset()
    try:
        with dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    except FailOnRecompileLimitHit as error:
        raise RedCaseError("Dynamo reached its recompile limit") from error
    finally:
        dynamo.reset()
