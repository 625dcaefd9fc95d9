"""Writes the kernels' text as a C++ function kernel_source(file), every include in place."""

from __future__ import annotations

import re
import sys
from pathlib import Path

INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)


def text_of(path: Path, seen: set[Path]) -> str:
    """The file's text with its own includes in place, each once: compilation at run time has no file system."""
    if path in seen:
        return ""
    seen.add(path)
    text = path.read_text().replace("#pragma once\n", "")
    return INCLUDE.sub(lambda match: text_of(path.parent / match.group(1), seen), text)


def main(kernels: Path, output: Path) -> None:
    lines = ["static const char* kernel_source(const std::string& file) {"]
    files = sorted(kernels.glob("*.metal"))
    lines += [f'  if (file == "{path.stem}") return R"MSL({text_of(path, set())})MSL";' for path in files]
    lines += ['  ::onnx_moe::fail("there is no Metal kernel file ", file);', "}"]
    output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
