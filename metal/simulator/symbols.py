"""Where in a kernel file a machine address lies."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from .translation import SHIM


def source_line(library: Path, address: int) -> str:
    """ " at file:line <- …", innermost first, or nothing where no tool tells."""
    tool = next((name for name in ("llvm-symbolizer", "addr2line") if shutil.which(name)), None)
    if tool is None or not address:
        return ""
    options = ["--obj=" + str(library), "--inlines"] if tool == "llvm-symbolizer" else ["-e", str(library), "-i"]
    result = subprocess.run([tool, *options, hex(address)], capture_output=True, text=True)
    places = re.findall(r"(\S+\.(?:metal|h)):(\d+)", result.stdout)
    lines = [f"{Path(file).name}:{line}" for file, line in places if str(SHIM) not in file]
    return f" at {' <- '.join(lines[:4])}" if lines else ""
