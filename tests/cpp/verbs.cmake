# SPDX-License-Identifier: Apache-2.0
# Fake libibverbs.so.1 and libefa.so.1 with the real libraries' symbol versions, over one shared fake device.
set(fake_verbs_dir ${CMAKE_CURRENT_BINARY_DIR}/fake_verbs)
add_library(fake_device SHARED fake_verbs/fake_device.cpp)
target_compile_definitions(fake_device PRIVATE FAKE_DEVICE_BUILD)
target_include_directories(fake_device PUBLIC fake_verbs)
foreach(library ibverbs efa)
  add_library(fake_${library} SHARED fake_verbs/fake_${library}.cpp)
  set_target_properties(fake_${library} PROPERTIES
    OUTPUT_NAME ${library} SOVERSION 1 LIBRARY_OUTPUT_DIRECTORY ${fake_verbs_dir} CXX_VISIBILITY_PRESET default
    LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/fake_verbs/${library}.map)
  target_link_options(fake_${library} PRIVATE
    -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/fake_verbs/${library}.map)
  target_link_libraries(fake_${library} PRIVATE fake_device)
endforeach()
foreach(test test_verbs_start test_verbs_caps test_verbs_memory test_verbs_queues test_verbs_nic test_verbs_faults
             test_gpu_ring_direct test_arrival_devices)
  target_link_libraries(${test} PRIVATE fake_device)
  target_compile_definitions(${test} PRIVATE FAKE_VERBS_DIR="${fake_verbs_dir}")
  add_dependencies(${test} fake_ibverbs fake_efa)
endforeach()
target_include_directories(test_topology PRIVATE fake_verbs)

# The declarations of verbs_abi.h against the real headers, where there are any (libibverbs-dev 65 or newer).
set(NVSHMEM_EFA_RDMA_CORE_INCLUDE "" CACHE PATH "Folder that holds infiniband/efadv.h, for test_verbs_abi")
include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_INCLUDES ${NVSHMEM_EFA_RDMA_CORE_INCLUDE})
check_cxx_source_compiles("#include <infiniband/efadv.h>
int main() { return sizeof(efadv_comp_cntr_init_attr) == 0; }" NVSHMEM_EFA_HAVE_RDMA_CORE_HEADERS)
unset(CMAKE_REQUIRED_INCLUDES)
if(NVSHMEM_EFA_HAVE_RDMA_CORE_HEADERS)
  target_compile_definitions(test_verbs_abi PRIVATE HAVE_RDMA_CORE_HEADERS)
  if(NVSHMEM_EFA_RDMA_CORE_INCLUDE)
    target_include_directories(test_verbs_abi SYSTEM PRIVATE ${NVSHMEM_EFA_RDMA_CORE_INCLUDE})
  endif()
endif()
