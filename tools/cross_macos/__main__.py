"""Builds the plugin with its Metal backend for macOS 14 on arm64, on Linux; checks the library; packs a wheel.

    python -m tools.cross_macos            # needs zig (pip install ziglang), cmake and ninja; about two minutes

It fetches metal-cpp when build/metal_cpp is not there. Nothing of it runs on a Mac: what it shows is that the sources
compile and link for one, and that macOS's loader and pip would take the results.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools.cross_macos import macho, stubs, wheel
from tools.fetch_metal_cpp import fetch

ROOT = Path(__file__).resolve().parents[2]
#: bfloat in shaders came with Metal 3.1, that is with macOS 14.
MACOS = (14, 0)
TAG = f"py3-none-macosx_{MACOS[0]}_{MACOS[1]}_arm64"
NEEDS = ("Metal.framework", "libobjc", "libSystem")
EXPORTS = ("_RegisterCustomOps", "_onnx_moe_")
#: Functions of Metal's first version; constants came over the years, and metal-cpp binds them weakly.
STRONG = (
    "_MTLCreateSystemDefaultDevice",
    "_MTLCopyAllDevices",
    "_MTLCopyAllDevicesWithObserver",
    "_MTLRemoveDeviceObserver",
)
#: zig's linker has no list of exports: its C++ runtime's operators new and delete stay visible, which Apple's hides.
TOLERATED = ("__Zn", "__Zd", "___dso_handle", "__mh_dylib_header")


def run(*command: str | Path) -> None:
    """Runs a command; ends the program with what it printed when it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(f"{result.stdout}\n{command[0]} failed with status {result.returncode}")


def configure(build: Path, sysroot: Path) -> None:
    definitions = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "tools" / "cross_macos" / "toolchain.cmake",
        "ONNX_MOE_ZIG_PYTHON": sys.executable,
        "ONNX_MOE_SYSROOT": sysroot,
        "ONNX_MOE_MACOS": ".".join(map(str, MACOS)),
        "ONNX_MOE_WARNINGS_AS_ERRORS": "ON",
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "Python3_EXECUTABLE": sys.executable,
    }
    run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *(f"-D{name}={value}" for name, value in definitions.items()))


def build_library(folder: Path) -> Path:
    """Compiles all objects, writes stubs of what they take from macOS, and links; the library's path."""
    build, sysroot, headers = folder / "cmake", folder / "sysroot", ROOT / "build" / "metal_cpp"
    if not (headers / "Metal" / "Metal.hpp").exists():
        fetch(headers)
    configure(build, sysroot)
    commands = json.loads((build / "compile_commands.json").read_text())
    objects = [Path(command["output"]).relative_to(build) for command in commands]
    print(f"compiling {len(objects)} files for macOS {MACOS[0]} on arm64", flush=True)
    run("ninja", "-C", build, *objects)
    stubs.write(sysroot, (build / path for path in objects))
    print("linking", flush=True)
    run("ninja", "-C", build)
    run("cmake", "--install", build, "--component", "onnx_moe", "--prefix", folder / "installed")
    return folder / "installed" / "onnx_moe" / "lib" / "libonnx_moe.dylib"


def main() -> int:
    if sysconfig.get_platform().startswith("macosx"):
        sys.exit("this is a Mac: pip install . builds the plugin here")
    folder = ROOT / "build" / "cross_macos"
    library = build_library(folder)
    read = macho.read(library)
    problems = macho.check(read, needs=NEEDS, exports=EXPORTS, minimum_os=MACOS, tolerated=TOLERATED, strong=STRONG)
    print(f"{library}: {len(read.data):,} bytes, {len(read.exports())} exports, loads")
    print("".join(f"  {dylib}\n" for dylib in read.dylibs), end="")
    for problem in problems:
        print(f"problem: {problem}")
    if problems:
        return 1
    packed = wheel.pack(ROOT, folder / "installed", TAG, folder / "dist")
    wheel.check(packed, TAG.removeprefix("py3-none-"))
    print(f"{packed}: pip takes it for {TAG.removeprefix('py3-none-')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
