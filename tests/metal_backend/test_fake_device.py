"""What the fake Metal device must notice of a host that uses Metal wrongly (misuse.cpp)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from metal.simulator import compilers

from .plugin import BUILD, HEADERS, ROOT, build_plugin

FOLDERS = (
    HEADERS,
    *(ROOT / folder for folder in ("ops", "metal", "metal/stand_ins", "metal/simulator/objective_c/include")),
)

MISUSES = {
    "unknown selector": "Device does not answer newFence",
    "freed object": "length is sent to a freed object",
    "released twice": "release is sent to a freed object",
    "no pool": "NSString is autoreleased without a pool",
    "argument table": "buffer index 31 is past the argument table",
    "offset past the end": "a buffer's offset is past its end",
    "unaligned offset": "a buffer's offset is no multiple of 16",
    "wide threadgroup": "a threadgroup of more than 1024 threads",
    "unbound argument": "buffer index 0 is not bound",
    "many residency sets": "a queue takes at most 32 residency sets",
    "not in the set": "taken from a residency set that does not have it",
    "changes not committed": "residency is requested of a set whose changes are not committed",
    "long bytes": "setBytes takes at most 4096 bytes",
    "no pipeline": "a dispatch without a pipeline",
    "open encoder": "committed before its encoder has ended",
    "not committed": "waited for that was not committed",
    "committed twice": "a command buffer is committed twice",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """misuse.cpp, with the fake device as the plugin has it."""
    if not build_plugin().is_simulated:
        pytest.skip("a Mac's device is none of ours")
    assert compilers.CLANGXX is not None
    path = tmp_path_factory.mktemp("misuse") / "misuse"
    objects = BUILD / "ops/CMakeFiles/onnx_moe.dir/__/metal"
    files = [Path(__file__).with_name("misuse.cpp"), objects / "runtime/metal_cpp.cpp.o"]
    files += sorted((objects / "simulator/objective_c").glob("*.o"))
    flags = ["-std=c++17", "-fblocks", "-w", *(f"-I{folder}" for folder in FOLDERS), "-pthread"]
    command = [compilers.CLANGXX, *flags, *map(str, files), "-o", str(path), "-ldl"]
    compilers.run("compiling misuse.cpp", command)
    return path


def use(program: Path, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, what], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("what", MISUSES)
def test_misuse_ends_the_process(program: Path, what: str) -> None:
    result = use(program, what)
    assert result.returncode < 0, result.stdout
    assert result.stderr.startswith("fake Metal: ")
    assert MISUSES[what] in result.stderr


def test_right_use_does_not(program: Path) -> None:
    result = use(program, "nothing")
    assert (result.returncode, result.stdout) == (0, "nothing was noticed\n"), result.stderr


def test_only_whole_pages_are_wrapped(program: Path) -> None:
    assert use(program, "unaligned").returncode == 0
