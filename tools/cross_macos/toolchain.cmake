# zig's clang for macOS on arm64, run by the Python that ONNX_MOE_ZIG_PYTHON names. Apple's frameworks are stubs that
# tools/cross_macos/stubs.py writes into ONNX_MOE_SYSROOT.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ONNX_MOE_ZIG_PYTHON ONNX_MOE_SYSROOT ONNX_MOE_MACOS)
set(CMAKE_CXX_COMPILER ${ONNX_MOE_ZIG_PYTHON} -m ziglang c++ -target aarch64-macos.${ONNX_MOE_MACOS})
set(CMAKE_AR ${CMAKE_CURRENT_LIST_DIR}/unused)
set(CMAKE_INSTALL_NAME_TOOL ${CMAKE_CURRENT_LIST_DIR}/unused)
set(CMAKE_CXX_COMPILER_WORKS ON)  # linking needs the stubs, which need the objects
set(CMAKE_HAVE_LIBC_PTHREAD ON)
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-F ${ONNX_MOE_SYSROOT}/Frameworks -L ${ONNX_MOE_SYSROOT}/lib -Wl,-dead_strip -s")
