"""Compiles a kernel file for the fake Metal device: prints the paths of the fiber runtime and of the compiled kernels.

    python -m metal.simulator.objective_c.library source.metal

ONNX_MOE_SIMULATOR_MISCOMPILES="old => new" has it compile other text than it is given, as a compiler with a defect
would.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..library import KernelLibrary, fiber_runtime_path


def miscompile(source: Path, defect: str) -> None:
    """Replaces the first `old` of "old => new" in a source file, if it has one."""
    old, new = defect.split(" => ")
    source.write_text(source.read_text().replace(old, new, 1))


def main(source: str) -> None:
    if defect := os.environ.get("ONNX_MOE_SIMULATOR_MISCOMPILES"):
        miscompile(Path(source), defect)
    library = KernelLibrary.load(Path(source), open_constants=True)
    print(fiber_runtime_path(), library.shared_object(), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
