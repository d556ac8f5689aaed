# SPDX-License-Identifier: Apache-2.0
# libnvshmem_efa.so: the plugin's implementation and the C API.
# nvshmem_transport_efa_abi<N>.so: one entry point each, with the SONAME that a host library of plugin ABI N asks for.
# libnvshmem_efa_shim.so: the switch.
# All lie in one folder and find each other by $ORIGIN.
set(plugin_folder ${CMAKE_BINARY_DIR}/nvshmem_efa/lib)

function(plugin_library target)
  # The C++ runtime is linked dynamically, everywhere: std::vector and std::unordered_map objects cross the interface,
  # so the host library's libstdc++ and ours must be one. (Only their layout is relied on, but an exception or an
  # allocation that crossed two copies would not be survivable.)
  set_target_properties(${target} PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY ${plugin_folder}
    BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH ON
    CXX_VISIBILITY_PRESET hidden)
  # Never unmapped: the agent's thread runs here, and structs that hosts hold point here.
  target_link_options(${target} PRIVATE -Wl,-z,nodelete -Wl,--as-needed
    -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/shim/${ARGN})
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/shim/${ARGN})
  install(TARGETS ${target} LIBRARY DESTINATION nvshmem_efa/lib COMPONENT wheel)
endfunction()

# The plugin's sources once, also for tests that put recording fakes behind them.
add_library(nvshmem_efa_plugin_objects OBJECT
  src/plugin_api.cpp src/plugin_connect.cpp src/plugin_fuse.cpp src/plugin_init.cpp src/plugin_memory.cpp src/plugin_modules.cpp
  src/plugin_ops.cpp)
target_link_libraries(nvshmem_efa_plugin_objects PUBLIC nvshmem_efa_core)

add_library(nvshmem_efa SHARED)
target_link_libraries(nvshmem_efa PRIVATE nvshmem_efa_plugin_objects nvshmem_efa_core)
plugin_library(nvshmem_efa api.map)

foreach(abi 3 4 5 6 7)
  set(target nvshmem_transport_efa_abi${abi})
  add_library(${target} SHARED src/plugin_entry.cpp)
  target_link_libraries(${target} PRIVATE nvshmem_efa)
  plugin_library(${target} entry.map)
  set_target_properties(${target} PROPERTIES PREFIX "" NO_SONAME ON)
  target_link_options(${target} PRIVATE -Wl,-soname,nvshmem_transport_libfabric.so.${abi})
  list(APPEND plugin_targets ${target})
endforeach()

add_library(nvshmem_efa_shim SHARED shim/switch.cpp shim/modules.cpp)
target_include_directories(nvshmem_efa_shim PRIVATE include)
target_compile_options(nvshmem_efa_shim PRIVATE -fno-exceptions -fno-rtti)
target_link_libraries(nvshmem_efa_shim PRIVATE ${CMAKE_DL_LIBS})
plugin_library(nvshmem_efa_shim shim.map)
add_dependencies(nvshmem_efa_shim ${plugin_targets})  # at run time; it links none of them
