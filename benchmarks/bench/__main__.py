"""`python -m benchmarks.bench --help`."""

import sys
from collections.abc import Sequence

from benchmarks.bench.cli import bench
from spem.cli.parser import Parser, fail


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 1 where results are wrong, 2 for wrong input."""
    summary = str(bench.__doc__).partition("\n")[0]
    parser = Parser(usage="python -m benchmarks.bench [flags]", description=summary)
    parser.add_function_arguments(bench, as_group=False)
    try:
        return bench(**parser.parse_args(argv, defaults=False).as_dict())
    except (ValueError, OSError, ImportError) as error:
        return fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
