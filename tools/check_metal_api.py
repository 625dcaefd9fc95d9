"""The Metal API that the host runtime uses, against an independent description of it: PyObjC's, made from Apple's SDK.

    python -m tools.check_metal_api       # needs clang++ and build/metal_cpp; fetches pyobjc-framework-Metal with pip

Every enumeration value that metal/runtime names must have the value that PyObjC knows, and every Metal selector that
the fake device answers (it ends tests at all others) must be one of Metal's. PyObjC describes only methods whose types
need it; of the others this has metal-cpp's word alone, and lists them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from metal.simulator import compilers

ROOT = Path(__file__).resolve().parents[1]
PYOBJC = "pyobjc-framework-Metal==12.2.2"
HEADERS = ROOT / "build" / "metal_cpp"

_ENUMERATION = re.compile(r"\bMTL::([A-Z]\w+)\b")
_VALUE = re.compile(r"\b(MTL\w+)@(-?\d+)\b")
_SELECTOR = re.compile(r'method\(\s*"(\w+)",\s*"([\w:]+)"')
#: Classes of the fake device that are Foundation's.
_FOUNDATION = {"NSString", "NSError", "NSProcessInfo"}


def fetch_pyobjc(folder: Path) -> Path:
    """PyObjC's package for Metal, unpacked below `folder`."""
    if not (folder / "Metal" / "_metadata.py").exists():
        platform = ["--platform", "macosx_11_0_universal2", "--python-version", "312", "--abi", "cp312"]
        with tempfile.TemporaryDirectory() as downloads:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, *platform, "--dest", downloads, PYOBJC], check=True)
            with zipfile.ZipFile(next(Path(downloads).glob("*.whl"))) as wheel:
                wheel.extractall(folder)
    return folder


def used_enumerations() -> set[str]:
    """Names like ResourceStorageModeShared in the host runtime; class names among them have no value and fall out."""
    sources = "".join(path.read_text() for path in sorted((ROOT / "metal" / "runtime").glob("*.cpp")))
    return set(_ENUMERATION.findall(sources))


def wrong_enumerations(metadata: str) -> tuple[int, list[str]]:
    """How many values were compared by metal-cpp's headers, and the compiler's complaints."""
    known = {name.removeprefix("MTL"): int(value) for name, value in _VALUE.findall(metadata)}
    compared = sorted(name for name in used_enumerations() if name in known)
    lines = [f'static_assert(static_cast<long long>(MTL::{n}) == {known[n]}, "MTL::{n}");' for n in compared]
    source = "#include <Metal/Metal.hpp>\n" + "\n".join(lines)
    folders = [HEADERS, ROOT / "metal/stand_ins", ROOT / "metal/simulator/objective_c/include"]
    includes = [f"-I{folder}" for folder in folders]
    if compilers.CLANGXX is None:
        raise SystemExit("enumerations are compared by clang++, and there is none (Debian: clang)")
    command = [compilers.CLANGXX, "-std=c++17", "-fblocks", "-w", "-fsyntax-only", *includes, "-x", "c++", "-"]
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    return len(compared), [line for line in result.stderr.splitlines() if "error" in line]


def unknown_selectors(pyobjc: Path) -> tuple[int, list[str]]:
    """How many selectors the fake device answers, and those that PyObjC's metadata and protocols do not mention."""
    sources = "".join(path.read_text() for path in (ROOT / "metal/simulator/objective_c").glob("*.cpp"))
    selectors = {selector for owner, selector in _SELECTOR.findall(sources) if owner not in _FOUNDATION}
    package = [pyobjc / "Metal" / "_metadata.py", *(pyobjc / "Metal").glob("*.so")]
    words = set(re.findall(rb"[A-Za-z_][\w:]*", b"\n".join(path.read_bytes() for path in package)))
    return len(selectors), sorted(selector for selector in selectors if selector.encode() not in words)


def main() -> int:
    if not (HEADERS / "Metal" / "Metal.hpp").exists():
        sys.exit("no metal-cpp headers: python -m tools.fetch_metal_cpp build/metal_cpp")
    pyobjc = fetch_pyobjc(ROOT / "build" / "pyobjc")
    enumerations, wrong = wrong_enumerations((pyobjc / "Metal" / "_metadata.py").read_text())
    selectors, unknown = unknown_selectors(pyobjc)
    headers = "".join(path.read_text() for path in (HEADERS / "Metal").glob("*.hpp"))
    only_metal_cpp = [selector for selector in unknown if f'"{selector}"' in headers]
    print(f"enumerations: {enumerations} values compared, {len(wrong)} differ")
    print(f"selectors: {selectors}, of which PyObjC describes {selectors - len(unknown)}")
    print(f"metal-cpp alone knows: {', '.join(only_metal_cpp) or 'none'}")
    problems = [*wrong, *(f"selector {name} is none of Metal's" for name in unknown if name not in only_metal_cpp)]
    print("\n".join(problems))
    return 1 if problems or not enumerations or not selectors else 0


if __name__ == "__main__":
    sys.exit(main())
