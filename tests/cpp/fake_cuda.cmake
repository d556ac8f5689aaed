# SPDX-License-Identifier: Apache-2.0
# A driver and a GDRCopy for tests without a GPU. A program that links one of them has it in the process under the real
# library's name, and so the core's dlopen finds it.
add_library(fake_cuda SHARED fake_cuda/state.cpp fake_cuda/calls.cpp fake_cuda/memory.cpp)
set_target_properties(fake_cuda PROPERTIES OUTPUT_NAME cuda SOVERSION 1
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/fake_cuda)
target_link_libraries(fake_cuda PRIVATE Threads::Threads)
add_library(fake_gdrapi SHARED fake_gdrapi/fake_gdrapi.cpp)
set_target_properties(fake_gdrapi PROPERTIES OUTPUT_NAME gdrapi SOVERSION 2
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/fake_gdrapi)
target_link_libraries(fake_gdrapi PRIVATE fake_cuda)
foreach(name test_words_cuda test_cuda_driver test_cuda_memory_port test_cuda_peers test_gpu_ring_direct
        test_gpu_lane_cuda test_gpu_lane_paper test_ep_gpu test_ep_gpu_normal test_arrival_devices)
  target_link_libraries(${name} PRIVATE fake_cuda)
endforeach()
target_link_libraries(test_words_cuda PRIVATE fake_gdrapi)
