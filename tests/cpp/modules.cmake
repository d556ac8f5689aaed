# SPDX-License-Identifier: Apache-2.0
# Made-up modules and programs, and a copy of the library in which the test can play NVSHMEM's init and finalize.
set(modules ${CMAKE_CURRENT_BINARY_DIR}/modules)
add_library(modules_library SHARED modules/publish.cpp)
set_target_properties(modules_library PROPERTIES OUTPUT_NAME nvshmem_efa LIBRARY_OUTPUT_DIRECTORY ${modules})
target_include_directories(modules_library PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(modules_library PRIVATE nvshmem_efa_plugin_objects nvshmem_efa_core)
target_link_options(modules_library PRIVATE -Wl,-z,nodelete)

add_library(modules_module SHARED modules/first.cpp modules/second.cpp)
set_target_properties(modules_module PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${modules})
foreach(program module_program module_program_linked module_program_exports)
  add_executable(${program} modules/program.cpp)
  set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${modules})
  target_compile_definitions(${program} PRIVATE LIBRARY="$<TARGET_FILE:modules_library>"
    MODULE="$<TARGET_FILE:modules_module>" SHIM="$<TARGET_FILE:nvshmem_efa_shim>")
  add_dependencies(${program} modules_library modules_module nvshmem_efa_shim)
endforeach()
foreach(target modules_module module_program module_program_linked module_program_exports)
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/transport_efa/include)
  target_link_libraries(${target} PRIVATE ${CMAKE_DL_LIBS})
endforeach()
target_link_options(module_program_linked PRIVATE -Wl,--no-as-needed)
target_link_libraries(module_program_linked PRIVATE nvshmem_efa_shim)
set_target_properties(module_program_exports PROPERTIES ENABLE_EXPORTS ON)
target_compile_definitions(test_module_loading PRIVATE MODULES="${modules}" SHIM="$<TARGET_FILE:nvshmem_efa_shim>")
add_dependencies(test_module_loading module_program module_program_linked module_program_exports)
target_link_libraries(test_module_registry PRIVATE fake_cuda)

# The whole way, with the real library.
target_link_options(test_module_init PRIVATE -Wl,--no-as-needed)
target_link_libraries(test_module_init PRIVATE nvshmem_efa_pe_runtime nvshmem_efa_shim)
target_compile_definitions(test_module_init PRIVATE PLUGINS="${CMAKE_BINARY_DIR}/nvshmem_efa/lib"
  MODULE="$<TARGET_FILE:modules_module>")
add_dependencies(test_module_init modules_module nvshmem_transport_efa_abi3 nvshmem_transport_efa_abi7)
