"""Compiles a kernel for the fake Metal device: prints the paths of the fiber runtime and of the kernel, and its symbol.

python -m metal.simulator.objective_c.pipeline source.metal kernel index=value …
"""

from __future__ import annotations

import sys

from .. import runner, translator


def main(source: str, kernel: str, constants: list[str]) -> None:
    library = runner.compile(source, (), "cpu")
    if kernel not in library.kernel_names():
        sys.exit(f"the library has no function '{kernel}'")
    values = {int(index): int(value) for index, value in (item.split("=") for item in constants)}
    runtime = runner.fiber_runtime(library.cxx)._name
    print(runtime, library._cpu_library([kernel], values), translator.symbol(kernel), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
