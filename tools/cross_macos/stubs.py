"""Linker stubs (.tbd) of Apple's libraries: the symbols that our own objects take from them, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.cross_macos import macho


@dataclass(frozen=True)
class Library:
    path: str
    install_name: str


METAL = Library("Frameworks/Metal.framework/Metal.tbd", "/System/Library/Frameworks/Metal.framework/Versions/A/Metal")
FOUNDATION = Library(
    "Frameworks/Foundation.framework/Foundation.tbd",
    "/System/Library/Frameworks/Foundation.framework/Versions/C/Foundation",
)
OBJECTIVE_C = Library("lib/libobjc.tbd", "/usr/lib/libobjc.A.dylib")

# Named as Foundation's, but Metal's.
_NS_OF_METAL = (
    "_NSDeviceCertification",
    "_NSProcessInfoPerformanceProfile",
    "_NSProcessPerformanceProfile",
)


def _home(symbol: str) -> Library | None:
    """The library that has a symbol; None for libSystem's, of which zig has the stub."""
    if symbol.startswith(("_MTL", *_NS_OF_METAL)):
        return METAL
    if symbol.startswith("_NS"):
        return FOUNDATION
    if symbol.startswith(("_objc_", "_sel_", "_class_", "_object_", "_protocol_", "_OBJC_")):
        return OBJECTIVE_C
    return None


def write(sysroot: Path, objects: Iterable[Path]) -> None:
    """Writes the stubs of all three libraries below `sysroot`."""
    undefined = {symbol for path in objects for symbol in macho.read(path).undefined_symbols()}
    for library in (METAL, FOUNDATION, OBJECTIVE_C):
        symbols = ", ".join(f"'{symbol}'" for symbol in sorted(undefined) if _home(symbol) is library)
        path = sysroot / library.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\n"
            f"install-name: '{library.install_name}'\ncurrent-version: 1\n"
            f"exports:\n  - targets: [ arm64-macos ]\n    symbols: [ {symbols} ]\n...\n"
        )
