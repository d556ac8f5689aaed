# SPDX-License-Identifier: Apache-2.0
# The bench's launcher, on the fake driver.
target_link_libraries(test_bench_launcher PRIVATE nvshmem_efa_bench nvshmem_efa fake_cuda)
target_include_directories(test_bench_launcher PRIVATE ${PROJECT_SOURCE_DIR}/perf ${PROJECT_SOURCE_DIR}/transport_efa/kernels)
