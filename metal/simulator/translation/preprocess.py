"""The preprocessing step: macros and includes of a kernel file, with stubs in place of Metal's headers."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from .. import compilers
from ..errors import MslError

#: Headers that stand for the Metal standard library.
SHIM = Path(__file__).resolve().parents[1] / "shim"

_STUBS = SHIM / "preprocessing"
_LANGUAGE = ("-E", "-x", "c++", "-std=c++17", "-undef", "-nostdinc", "-ffreestanding")
_MACROS = ("-D__METAL__=1", "-D__METAL_VERSION__=310", "-D__METAL_MACOS__=1", "-D__APPLE__=1", "-D__HAVE_BFLOAT__=1")


def preprocess(source: Path | str, definitions: Mapping[str, str] | None = None) -> str:
    """The text of a kernel file, or MSL text, with its own includes in place."""
    command = [
        compilers.preprocessor(),
        *_LANGUAGE,
        *_MACROS,
        "-include",
        str(_STUBS / "msl_macros.h"),
        "-isystem",
        str(_STUBS),
    ]
    command += [f"-D{name}={value}" for name, value in (definitions or {}).items()]
    if isinstance(source, Path):
        result = subprocess.run([*command, str(source)], capture_output=True, text=True)
    else:
        result = subprocess.run([*command, "-"], input=source, capture_output=True, text=True)
    if result.returncode:
        raise MslError(f"preprocessing failed:\n{result.stderr}")
    return result.stdout.replace('"<stdin>"', '"source.metal"')
