"""Apple's metal-cpp headers (Apache-2.0) into a folder: they come with the wheel mlx-metal of PyPI.

python -m tools.fetch_metal_cpp build/metal_cpp
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "mlx-metal==0.32.4"
INSIDE = "mlx/include/metal_cpp/"


def fetch(folder: Path) -> None:
    """Downloads the wheel (45 MB) and keeps its headers."""
    with tempfile.TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        platform = ["--platform", "macosx_14_0_arm64", "--dest", downloads]
        subprocess.run([*pip, *platform, WHEEL], check=True)
        with zipfile.ZipFile(next(Path(downloads).glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.startswith(INSIDE) and not name.endswith("/"):
                    target = folder / name.removeprefix(INSIDE)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(wheel.read(name))
    print(f"metal-cpp is in {folder}")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
