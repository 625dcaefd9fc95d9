"""The checks of the cross build and of Metal's API: that they find what they look for."""

from __future__ import annotations

import struct
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tools.check_metal_api import used_enumerations
from tools.cross_macos import macho, wheel
from tools.cross_macos.__main__ import EXPORTS, MACOS, NEEDS, STRONG, TAG, TOLERATED

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "cross_macos" / "installed" / "onnx_moe" / "lib" / "libonnx_moe.dylib"
RULES = {"needs": NEEDS, "exports": EXPORTS, "minimum_os": MACOS, "tolerated": TOLERATED, "strong": STRONG}


@pytest.fixture
def library() -> macho.MachO:
    if not BUILT.exists():
        pytest.skip("no library for macOS: .ci/cross_macos builds it")
    return macho.read(BUILT)


def test_the_built_library_passes(library: macho.MachO) -> None:
    assert macho.check(library, **RULES) == []
    assert "_onnx_moe_router" in library.exports()


def test_a_changed_byte_breaks_the_signature(library: macho.MachO) -> None:
    data = bytearray(library.data)
    data[0x4000 * 3] ^= 1
    problems = macho.check(replace(library, data=bytes(data)), **RULES)
    assert any("the signature's hash of page" in problem for problem in problems)


def test_other_rules_are_broken(library: macho.MachO) -> None:
    problems = macho.check(library, needs=("Vision.framework",), exports=("_RegisterCustomOps",), minimum_os=(13, 0))
    assert "it does not load Vision.framework" in problems
    assert "it exports _onnx_moe_router" in problems
    assert "its minimum macOS is (14, 0), not (13, 0)" in problems


def test_a_constant_that_is_not_bound_weakly_is_found(library: macho.MachO) -> None:
    """As where a header declares it without weak_import: macOS 14 would not load the library."""
    name = next(name for name, weak in library.imports().items() if weak and name.startswith("_MTL"))
    weak = b"\x41" + name.encode() + b"\0"
    assert weak in library.data
    strong = replace(library, data=library.data.replace(weak, b"\x40" + weak[1:]))
    assert f"it does not load where {name} is not: bind it weakly" in macho.check(strong, **RULES)


def test_bind_programs_are_read() -> None:
    program = b"\x11\x40_one\0\x51\x72\x80\x01\x90\x41_two\0\xc0\x03\x88\x01\x40_three\0\x90\0"
    library = macho.MachO(program, binds=[(0, len(program))])
    assert library.imports() == {"_one": False, "_two": True, "_three": False}


def test_the_wheel_holds_the_library_and_its_metadata(library: macho.MachO) -> None:
    (wheel,) = (ROOT / "build" / "cross_macos" / "dist").glob("*-py3-none-macosx_14_0_arm64.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("onnx_moe/lib/libonnx_moe.dylib") == library.data
        names = archive.namelist()
    assert {"onnx_moe/__init__.py", "onnx_moe/export/__init__.py", "onnx_moe/operators.json"} <= set(names)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)


def test_a_wheel_is_packed_that_pip_takes(tmp_path: Path) -> None:
    """Of any file in the library's place: what is in it is checked above."""
    installed = tmp_path / "installed" / "onnx_moe"
    (installed / "lib").mkdir(parents=True)
    (installed / "lib" / "libonnx_moe.dylib").write_bytes(b"a library")
    packed = wheel.pack(ROOT, installed.parent, TAG, tmp_path / "dist")
    assert packed.name.endswith("-py3-none-macosx_14_0_arm64.whl")
    wheel.check(packed, TAG.removeprefix("py3-none-"))
    with pytest.raises(subprocess.CalledProcessError):
        wheel.check(packed, "macosx_13_0_arm64")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(struct.pack("<8I", 0xFEEDFACF, 0x01000007, 6, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="no thin arm64 Mach-O file"):
        macho.read(path)


def test_enumerations_of_the_host_runtime_are_found() -> None:
    assert {"ResourceStorageModeShared", "DataTypeUInt", "CommandBufferStatusCompleted"} <= used_enumerations()
