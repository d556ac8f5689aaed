# SPDX-License-Identifier: Apache-2.0
# Tests of the PCI front.
file(GLOB pci_tests CONFIGURE_DEPENDS test_pci_*.cpp)
foreach(source ${pci_tests})
  get_filename_component(name ${source} NAME_WE)
  target_link_libraries(${name} PRIVATE nvshmem_efa_pci)
endforeach()
