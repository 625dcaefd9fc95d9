"""Kernels that Xcode compiles: CMake's rules and the host runtime, with a stand-in for xcrun (xcrun.py)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from .plugin import BUILD, ROOT, Plugin, build_plugin, cmake_options

ELEMENTS = ("float", "half", "bfloat")
FILES = sorted(path.stem for path in (ROOT / "metal" / "kernels").glob("*.metal"))


@pytest.fixture(scope="module")
def plugin() -> Plugin:
    built = build_plugin()
    if not built.is_simulated:
        pytest.skip("a Mac has an xcrun of its own")
    return built


def configure(build: Path, xcrun: Path) -> str:
    """What CMake prints where there is such an `xcrun`."""
    command = ["cmake", "-S", ROOT, "-B", build, *cmake_options(), f"-DONNX_MOE_XCRUN={xcrun}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def generated(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build where there is Xcode makes of the kernels."""
    folder = tmp_path_factory.mktemp("metallibs")
    tool = folder / "xcrun"
    shutil.copy(Path(__file__).parent / "xcrun.py", folder / "xcrun.py")
    tool.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec python3 "{folder}/xcrun.py" "$@"\n')
    tool.chmod(0o755)
    build = folder / "build"
    assert f"Metal kernels are compiled by Xcode ({tool} -sdk macosx metal)" in configure(build, tool)
    built = subprocess.run(["ninja", "-C", build, "onnx_moe_metal_kernels"], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return build / "metal"


def test_every_file_is_compiled_for_every_element(generated: Path) -> None:
    names = sorted(path.stem for path in (generated / "metallibs").glob("*.metallib"))
    assert names == sorted(f"{file}_{element}" for file in FILES for element in ELEMENTS)
    text = (generated / "kernel_sources.inc").read_text()
    assert all(f"sizeof k_{name}" in text for name in names)


def test_the_host_runtime_loads_them(plugin: Plugin, generated: Path, tmp_path: Path) -> None:
    """Values are right and nothing is compiled from text: the text that this plugin carries is none."""
    carried = (generated / "kernel_sources.inc").read_text()
    (tmp_path / "kernel_sources.inc").write_text(carried.replace('R"MSL(', 'R"MSL(#error text\n'))
    library = relink(tmp_path)
    facts = Plugin(library).facts_in_new_process()
    assert facts["command_buffers"] == 1


def test_xcode_without_its_metal_compiler_leaves_the_kernels_to_run_time(plugin: Plugin, tmp_path: Path) -> None:
    """Xcode 26 has a `metal` that only says how to download the compiler."""
    tool = tmp_path / "xcrun"
    missing = "error: cannot execute tool 'metal' due to missing Metal Toolchain"
    tool.write_text(f"""#!/bin/sh
case "$*" in *-find*) echo /stub/metal ;; *) echo "{missing}" >&2; exit 1 ;; esac
""")
    tool.chmod(0o755)
    printed = configure(tmp_path / "build", tool)
    assert f"Metal kernels are compiled at run time: there is no Xcode with its Metal compiler. {missing}" in printed


def relink(folder: Path) -> Path:
    """The plugin with pipelines.cpp compiled for the kernel_sources.inc in `folder`."""
    commands = subprocess.run(["ninja", "-C", BUILD, "-t", "commands"], capture_output=True, text=True, check=True)
    lines = commands.stdout.splitlines()
    compile_line = next(line for line in lines if "runtime/pipelines.cpp.o -c" in line)
    link_line = next(line for line in reversed(lines) if "-o ops/libonnx_moe.so" in line)
    pipelines = "ops/CMakeFiles/onnx_moe.dir/__/metal/runtime/pipelines.cpp.o"
    assert pipelines in link_line
    compile_line = compile_line.replace(" -o ", f" -I{folder} -o ", 1).replace(pipelines, f"{folder}/pipelines.o")
    compile_line = compile_line.replace(f" -I{BUILD}/metal ", " ")
    link_line = link_line.replace(pipelines, f"{folder}/pipelines.o").replace("-o ops/", f"-o {folder}/")
    for line in (compile_line, link_line):
        result = subprocess.run(line, shell=True, cwd=BUILD, capture_output=True, text=True, env=os.environ)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "libonnx_moe.so"
