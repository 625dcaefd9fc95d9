#!/usr/bin/env python3
"""Stands in for Xcode's xcrun: its `metal` keeps the text that it is given, for the fake device to load.

xcrun -sdk macosx metal --version
xcrun -sdk macosx metal OPTIONS KERNEL.metal -o KERNEL.metallib
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from metal.runtime.embed_kernels import text_of


def main(arguments: list[str]) -> None:
    assert arguments[:2] == ["-sdk", "macosx"]
    assert arguments[2] == "metal"
    if arguments[3:] == ["--version"]:
        print("a stand-in")
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("-std", dest="standard")
    parser.add_argument("-mmacosx-version-min", dest="macos")
    parser.add_argument("-fno-fast-math", dest="exact", action="store_true")
    parser.add_argument("-D", dest="definitions", action="append")
    parser.add_argument("-I", dest="folders", type=Path, action="append")
    parser.add_argument("-o", dest="output", type=Path)
    parser.add_argument("source", type=Path)
    options = parser.parse_args(arguments[3:])
    assert options.exact, "fast math would drop NaN and infinities"
    assert (options.standard, options.macos) == ("metal3.1", "14.0")
    assert options.folders == [options.source.parent]
    definitions = "".join("#define " + given.replace("=", " ") + "\n" for given in options.definitions)
    options.output.write_text(definitions + text_of(options.source, set()))


if __name__ == "__main__":
    main(sys.argv[1:])
