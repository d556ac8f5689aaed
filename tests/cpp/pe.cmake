# SPDX-License-Identifier: Apache-2.0
# The PE runtime's tests: over a loopback plugin of their own, and over the real one.
add_library(pe_loopback_plugin SHARED pe_loopback_plugin.cpp)
target_include_directories(pe_loopback_plugin PRIVATE ${PROJECT_SOURCE_DIR}/transport_efa/src)
add_library(pe_other_version_plugin SHARED pe_other_version_plugin.cpp)
target_include_directories(pe_other_version_plugin PRIVATE ${PROJECT_SOURCE_DIR}/transport_efa/src)
target_compile_definitions(pe_other_version_plugin PRIVATE NVSHMEM_EFA_VERSION="${PROJECT_VERSION}")
target_link_libraries(pe_other_version_plugin PRIVATE ${CMAKE_DL_LIBS})

foreach(name test_pe_runtime test_pe_bootstrap test_pe_plugin test_gpu_lane_plugin)
  target_link_libraries(${name} PRIVATE nvshmem_efa_pe_runtime)
endforeach()
target_compile_definitions(test_pe_runtime PRIVATE PE_LOOPBACK_PLUGIN="$<TARGET_FILE:pe_loopback_plugin>")
add_dependencies(test_pe_runtime pe_loopback_plugin)
foreach(name test_pe_plugin test_pe_program test_gpu_lane_plugin)
  target_compile_definitions(${name} PRIVATE
    PE_PLUGIN_FOLDER="${CMAKE_BINARY_DIR}/nvshmem_efa/lib" PE_PROGRAM="$<TARGET_FILE:nvshmem-efa-pe>"
    PE_OTHER_VERSION_PLUGIN="$<TARGET_FILE:pe_other_version_plugin>")
  add_dependencies(${name} nvshmem-efa-pe pe_other_version_plugin nvshmem_transport_efa_abi3 nvshmem_transport_efa_abi4
    nvshmem_transport_efa_abi6 nvshmem_transport_efa_abi7)
endforeach()
