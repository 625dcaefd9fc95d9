"""Packs a wheel for another platform around a library that is built already."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

#: The build backend works on the folder that it is run in, and talks on standard output.
_METADATA = "import sys; from scikit_build_core import build; build.prepare_metadata_for_build_wheel(sys.argv[1])"


def pack(root: Path, installed: Path, tag: str, folder: Path) -> Path:
    """The wheel of the project at `root` in `folder`: its packages, what CMake installed, its metadata, for `tag`."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    files: dict[str, bytes] = {}
    for inside, source in project["tool"]["scikit-build"]["wheel"]["packages"].items():
        files |= {f"{inside}/{path}": (root / source / path).read_bytes() for path in _tracked(root / source)}
    files |= {
        path.relative_to(installed).as_posix(): path.read_bytes() for path in installed.rglob("*") if path.is_file()
    }
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-c", _METADATA, scratch], cwd=root, check=True, stdout=subprocess.DEVNULL)
        (information,) = Path(scratch).glob("*.dist-info")
        name = information.name
        for path in information.rglob("*"):
            if path.is_file():
                files[path.relative_to(scratch).as_posix()] = path.read_bytes()
    files[f"{name}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: onnx-moe\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name.removesuffix('.dist-info')}-{tag}.whl"
    record = f"{name}/RECORD"
    lines = [f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items()]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name_inside, data in files.items():
            archive.writestr(name_inside, data)
        archive.writestr(record, "".join(lines) + f"{record},,\n")
    return target


def check(wheel: Path, platform: str) -> None:
    """Has pip install the wheel for `platform`; raises CalledProcessError with pip's words when it does not."""
    with tempfile.TemporaryDirectory() as target:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        options = ["--platform", platform, "--target", target, "--disable-pip-version-check"]
        subprocess.run([*pip, *options, str(wheel)], check=True)
        if not (Path(target) / "onnx_moe" / "lib" / "libonnx_moe.dylib").exists():
            raise FileNotFoundError(f"{wheel} has no onnx_moe/lib/libonnx_moe.dylib")


def _tracked(folder: Path) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, check=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (folder / name).is_file()]


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
