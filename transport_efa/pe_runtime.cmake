# SPDX-License-Identifier: Apache-2.0
# The host PE runtime as a library, and nvshmem-efa-pe, one PE as a program. It meets the plugin only through dlopen.
file(GLOB pe_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/pe_runtime/*.cpp)
list(FILTER pe_sources EXCLUDE REGEX "/main\\.cpp$")
add_library(nvshmem_efa_pe_runtime STATIC ${pe_sources})
target_link_libraries(nvshmem_efa_pe_runtime PUBLIC nvshmem_efa_core)

add_executable(nvshmem-efa-pe pe_runtime/main.cpp)
target_link_libraries(nvshmem-efa-pe PRIVATE nvshmem_efa_pe_runtime)
set_target_properties(nvshmem-efa-pe PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/nvshmem_efa/bin)
install(TARGETS nvshmem-efa-pe RUNTIME DESTINATION nvshmem_efa/bin COMPONENT wheel)
