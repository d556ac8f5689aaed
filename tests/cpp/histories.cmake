# SPDX-License-Identifier: Apache-2.0
# The plugin itself is linked in, with its entry point exported, so that the port finds it in the program.
target_sources(test_histories PRIVATE history.cpp history_check.cpp history_ops.cpp
  ${PROJECT_SOURCE_DIR}/transport_efa/src/plugin_entry.cpp
  ${PROJECT_SOURCE_DIR}/transport_efa/pe_runtime/plugin_port.cpp)
target_link_libraries(test_histories PRIVATE nvshmem_efa_plugin_objects)
target_include_directories(test_histories PRIVATE ${PROJECT_SOURCE_DIR}/transport_efa)
target_link_options(test_histories PRIVATE -rdynamic)
