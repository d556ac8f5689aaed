# SPDX-License-Identifier: Apache-2.0
# The PCI front's tests.
foreach(source ${test_sources})
  get_filename_component(name ${source} NAME_WE)
  if(name MATCHES "^test_pci_")
    target_link_libraries(${name} PRIVATE nvshmem_efa_pci)
  endif()
endforeach()
