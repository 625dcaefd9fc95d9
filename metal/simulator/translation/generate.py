"""The C++ of a program: the shim's headers, the rewritten text, and entry points that a launch can call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import MslError
from .program import Kernel, Parameter, Program, Target

_MACROS = {"cpu": "MSL_CPU", "cuda": "MSL_CUDA", "check": "MSL_CHECK"}


def generate(
    text: str,
    target: Target,
    kernels: Sequence[str] | None = None,
    constants: Mapping[int, int] | None = None,
    open_constants: bool = False,
) -> str:
    """C++ for `target` with entry points for the kernels named (None: all).

    With open_constants, function constants are variables that msl_set_constants(values by index) sets.
    """
    program = Program(text, target, constants or {}, open_constants)
    parts = [
        f"#define {_MACROS[target]} 1\n",
        '#include "msl.h"\nnamespace mslns {\n',
        program.render(),
    ]
    if target != "check":
        parts.append('\n#line 1 "entry_points"\n')
        parts += [_entry_point(program, name) for name in (program.kernels if kernels is None else kernels)]
    if open_constants:
        parts.append(_constants_setter(program))
    return "".join([*parts, "\n}  // namespace mslns\n"])


def entry_symbol(kernel: str) -> str:
    return "mslk_" + kernel


def _entry_point(program: Program, name: str) -> str:
    if name not in program.kernels:
        raise MslError(f"there is no kernel {name}, only {', '.join(program.kernels)}")
    call = _call(program.kernels[name])
    if program.target == "cpu":
        return (
            f'extern "C" void {entry_symbol(name)}(void** buffers, const msl_thread* thread) {{\n'
            f"  const msl_thread& t = *thread; (void)t; (void)buffers;\n  {call}\n}}\n"
        )
    return (
        f'extern "C" __global__ void {entry_symbol(name)}(void* const* __restrict__ buffers) {{\n'
        f"  msl_thread t = msl_this_thread(); (void)t;\n  {call}\n}}\n"
    )


def _call(kernel: Kernel) -> str:
    return f"mslns::{kernel.name}({', '.join(_argument(kernel, parameter) for parameter in kernel.parameters)});"


def _argument(kernel: Kernel, parameter: Parameter) -> str:
    if parameter.buffer is not None:
        return f"msl_buf{{buffers[{parameter.buffer}]}}"
    if parameter.position is not None:
        return f"msl_{parameter.position}(t)"
    raise MslError(f"kernel {kernel.name}: the simulator knows no parameter like '{parameter.text}'")


def _constants_setter(program: Program) -> str:
    lines = [
        f"  {name} = {constant.type}(values[{constant.index}]);\n"
        for name, constant in program.function_constants.items()
    ]
    return 'extern "C" void msl_set_constants(const unsigned* values) {\n' + "".join(lines) + "}\n"
