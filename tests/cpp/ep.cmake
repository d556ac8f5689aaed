# SPDX-License-Identifier: Apache-2.0
# Tests of the expert-parallel exchange link its sources.
foreach(source ${test_sources})
  get_filename_component(name ${source} NAME_WE)
  if(name MATCHES "^test_ep_")
    target_link_libraries(${name} PRIVATE nvshmem_efa_ep_objects)
  endif()
endforeach()
