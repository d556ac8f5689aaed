# SPDX-License-Identifier: Apache-2.0
# The PE runtime's tests: a loopback plugin of their own, and the real one through the installed program's build.
add_library(pe_loopback_plugin SHARED pe_loopback_plugin.cpp)
target_include_directories(pe_loopback_plugin PRIVATE ${PROJECT_SOURCE_DIR}/transport_efa/src)
foreach(name test_pe_runtime test_pe_bootstrap)
  target_link_libraries(${name} PRIVATE nvshmem_efa_pe_runtime)
  target_compile_definitions(${name} PRIVATE PE_LOOPBACK_PLUGIN="$<TARGET_FILE:pe_loopback_plugin>")
  add_dependencies(${name} pe_loopback_plugin)
endforeach()
