"""Compiles a kernel file for the fake Metal device: prints the paths of the fiber runtime and of the compiled kernels.

python -m metal.simulator.objective_c.library source.metal
"""

from __future__ import annotations

import sys

from .. import runner


def main(source: str) -> None:
    library = runner.compile(source, open_constants=True)
    print(runner.fiber_runtime_path(), library.shared_object(), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
