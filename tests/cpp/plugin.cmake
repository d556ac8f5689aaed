# SPDX-License-Identifier: Apache-2.0
# Tests of the plugin's translation link its objects and put recording fakes behind them.
foreach(name test_abi test_plugin_ops test_plugin_memory test_plugin_init test_plugin_mode)
  target_link_libraries(${name} PRIVATE nvshmem_efa_plugin_objects)
endforeach()
