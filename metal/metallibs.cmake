# With Xcode, the kernels are compiled here: the first call on a Mac need not wait for Metal's compiler, and errors in them
# are errors of the build. Without, and with Apple's command line tools alone, they are compiled at run time.
# Sets metallibs (files FILE_ELEMENT.metallib) and metallib_folder; both empty without Xcode.
# From Xcode 26 on its compiler is a download of its own: without, `metal` is there and can only say so.
set(metallibs)
set(metallib_folder)
find_program(ONNX_MOE_XCRUN xcrun)
set(metal_compiler_missing 1)
set(metal_compiler_says)
if(ONNX_MOE_XCRUN)
  execute_process(COMMAND ${ONNX_MOE_XCRUN} -sdk macosx metal --version
                  RESULT_VARIABLE metal_compiler_missing OUTPUT_QUIET ERROR_VARIABLE metal_compiler_says)
endif()
if(NOT metal_compiler_missing EQUAL 0)
  string(STRIP "${metal_compiler_says}" metal_compiler_says)
  message(STATUS "Metal kernels are compiled at run time: there is no Xcode with its Metal compiler. ${metal_compiler_says}")
  return()
endif()
message(STATUS "Metal kernels are compiled by Xcode (${ONNX_MOE_XCRUN} -sdk macosx metal)")
set(metallib_folder ${CMAKE_CURRENT_BINARY_DIR}/metallibs)
file(MAKE_DIRECTORY ${metallib_folder})
file(GLOB kernel_files CONFIGURE_DEPENDS kernels/*.metal)
foreach(kernel_file IN LISTS kernel_files)
  get_filename_component(kernel_name ${kernel_file} NAME_WE)
  foreach(element float half bfloat)
    set(metallib ${metallib_folder}/${kernel_name}_${element}.metallib)
    # As the host runtime has Metal compile them: NaN, infinities and the order of sums are promised.
    add_custom_command(
      OUTPUT ${metallib}
      COMMAND ${ONNX_MOE_XCRUN} -sdk macosx metal -std=metal3.1 -mmacosx-version-min=14.0 -fno-fast-math
              -DELEMENT=${element} -I ${CMAKE_CURRENT_SOURCE_DIR}/kernels ${kernel_file} -o ${metallib}
      DEPENDS ${kernels}
      VERBATIM)
    list(APPEND metallibs ${metallib})
  endforeach()
endforeach()
