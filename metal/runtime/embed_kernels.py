"""Writes what the plugin carries of its kernels as C++: their text, and what Xcode made of it, where there was one.

    python embed_kernels.py KERNELS OUTPUT [METALLIBS]

OUTPUT defines kernel_source(file), every include in place, and kernel_library(file, element), which is empty for what
the folder METALLIBS has no FILE_ELEMENT.metallib.
"""

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


def source_function(kernels: Path) -> str:
    lines = ["static const char* kernel_source(const std::string& file) {"]
    files = sorted(kernels.glob("*.metal"))
    lines += [f'  if (file == "{path.stem}") return R"MSL({text_of(path, set())})MSL";' for path in files]
    lines += ['  ::onnx_moe::fail("there is no Metal kernel file ", file);', "}"]
    return "\n".join(lines)


def library_function(metallibs: list[Path]) -> str:
    arrays = [
        f"static const unsigned char k_{path.stem}[] = {{{','.join(map(str, path.read_bytes()))}}};"
        for path in metallibs
    ]
    choices = [
        f'  if (file + "_" + element == "{path.stem}") return {{k_{path.stem}, sizeof k_{path.stem}}};'
        for path in metallibs
    ]
    head = (
        "static CompiledKernels kernel_library([[maybe_unused]] const std::string& file,"
        " [[maybe_unused]] const std::string& element) {"
    )
    return "\n".join([*arrays, head, *choices, "  return {};", "}"])


def main(kernels: Path, output: Path, metallibs: Path | None = None) -> None:
    compiled = sorted(metallibs.glob("*.metallib")) if metallibs else []
    output.write_text(f"{source_function(kernels)}\n\n{library_function(compiled)}\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
