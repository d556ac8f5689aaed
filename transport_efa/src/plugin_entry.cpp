// SPDX-License-Identifier: Apache-2.0
// All that is in a plugin file. There are five, which differ in nothing but their SONAME: the host library asks for
// nvshmem_transport_libfabric.so.<N>. They share one libnvshmem_efa.so, and so one set of settings, log and state.
extern "C" int nvshmem_efa_plugin_init(void** transport, void* cuda_table, int api_version) noexcept;

extern "C" __attribute__((visibility("default"))) int nvshmemt_init(void** transport, void* cuda_table,
                                                                    int api_version) noexcept {
    return nvshmem_efa_plugin_init(transport, cuda_table, api_version);
}
