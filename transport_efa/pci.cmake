# SPDX-License-Identifier: Apache-2.0
# The PCI front of the software device as a library, and nvshmem-efa-pci, one EFA function of a virtual machine.
file(GLOB pci_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/soft_efa/pci/*.cpp)
list(FILTER pci_sources EXCLUDE REGEX "/main\\.cpp$")
add_library(nvshmem_efa_pci STATIC ${pci_sources})
target_link_libraries(nvshmem_efa_pci PUBLIC nvshmem_efa_core)

if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/soft_efa/pci/main.cpp)
  add_executable(nvshmem-efa-pci soft_efa/pci/main.cpp)
  target_link_libraries(nvshmem-efa-pci PRIVATE nvshmem_efa_pci)
  set_target_properties(nvshmem-efa-pci PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/nvshmem_efa/bin)
  install(TARGETS nvshmem-efa-pci RUNTIME DESTINATION nvshmem_efa/bin COMPONENT wheel)
endif()
