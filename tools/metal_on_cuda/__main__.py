"""The Metal kernels on an NVIDIA GPU: values at real sizes, and the decode kernels' share of the copy bandwidth.

    python -m tools.metal_on_cuda build build/metal_cuda      # translates and compiles: needs nvcc, and clang or GCC
    python -m tools.metal_on_cuda values build/metal_cuda    # where the card is: needs Python and numpy only
    python -m tools.metal_on_cuda small build/metal_cuda     # the same at small sizes, for compute-sanitizer
    python -m tools.metal_on_cuda bandwidth build/metal_cuda

A simdgroup is a warp and threadgroup memory is shared memory; what this says about Apple's compiler is nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tools.metal_on_cuda import bandwidth, values
from tools.metal_on_cuda.device import PLANNER, CudaDevice, KeepingDevice, build
from tools.metal_on_cuda.models import MODELS, SMALL


def build_all(folder: Path) -> None:
    """Compiles every kernel that the other commands launch: the small models take the same ones."""

    def calls(device: KeepingDevice) -> None:
        values.check(device, SMALL, (8, 1), values.Report(say=lambda line: None))  # nothing is computed
        bandwidth.compile_for(device)

    build(folder, calls)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.metal_on_cuda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("build", "values", "small", "bandwidth"))
    parser.add_argument("folder", type=Path, help="where the compiled kernels are, or go")
    options = parser.parse_args(arguments)
    if options.command == "build":
        build_all(options.folder)
        return 0
    os.environ["ONNX_MOE_PLANNER"] = str((options.folder / PLANNER).resolve())
    device = CudaDevice(options.folder)
    print(device.cuda.name)
    if options.command == "bandwidth":
        bandwidth.measure(device)
        return 0
    models, tokens = (MODELS, (1, 7, 64, 512, 4096)) if options.command == "values" else (SMALL, (1, 7, 65))
    return 0 if values.check(device, models, tokens) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
