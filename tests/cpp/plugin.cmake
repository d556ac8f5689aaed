# SPDX-License-Identifier: Apache-2.0
# Tests of the plugin's translation link its objects and put recording fakes behind them.
foreach(name test_abi test_plugin_ops test_plugin_fuse test_plugin_amo test_plugin_memory test_plugin_init test_plugin_mode test_fallback)
  target_link_libraries(${name} PRIVATE nvshmem_efa_plugin_objects)
endforeach()

# A made-up NVSHMEM: host library, stock plugins of every temper, a program.
set(fakes ${CMAKE_CURRENT_BINARY_DIR}/fakes)
set(installed ${CMAKE_BINARY_DIR}/nvshmem_efa/lib)

function(fake_library target source)
  add_library(${target} SHARED fake_nvshmem/${source})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/transport_efa/src)
  target_link_libraries(${target} PRIVATE ${CMAKE_DL_LIBS})
  target_compile_definitions(${target} PRIVATE ${ARGN})
  set_target_properties(${target} PROPERTIES PREFIX "" SKIP_BUILD_RPATH ON LIBRARY_OUTPUT_DIRECTORY ${fakes})
endfunction()
fake_library(stock_good fake_stock.cpp STOCK_RESULT=0)
fake_library(stock_failing fake_stock.cpp STOCK_RESULT=7)
fake_library(stock_crashing fake_stock.cpp STOCK_RESULT=0 STOCK_CRASHES)
fake_library(stock_libfabric fake_stock.cpp STOCK_RESULT=0)
set_target_properties(stock_libfabric PROPERTIES NO_SONAME ON)
target_link_options(stock_libfabric PRIVATE -Wl,-soname,nvshmem_transport_libfabric.so.3)
fake_library(stock_libfabric5 fake_stock.cpp STOCK_RESULT=0)
set_target_properties(stock_libfabric5 PROPERTIES NO_SONAME ON)
target_link_options(stock_libfabric5 PRIVATE -Wl,-soname,nvshmem_transport_libfabric.so.5)
# Needs a library that is not there at run time, as the real libfabric plugin needs libfabric.so.1.
fake_library(not_there fake_stock.cpp STOCK_RESULT=0)
fake_library(stock_missing fake_stock.cpp STOCK_RESULT=0)
target_link_options(stock_missing PRIVATE -Wl,--no-as-needed)
target_link_libraries(stock_missing PRIVATE not_there)
fake_library(fake_host fake_host.cpp)
set_target_properties(fake_host PROPERTIES NO_SONAME ON)
target_link_options(fake_host PRIVATE -Wl,-soname,libnvshmem_host.so.3 -Wl,--disable-new-dtags)  # DT_RPATH
set_target_properties(fake_host PROPERTIES SKIP_BUILD_RPATH OFF BUILD_RPATH "$ORIGIN")
add_executable(fake_program fake_nvshmem/fake_program.cpp)
target_link_libraries(fake_program PRIVATE ${CMAKE_DL_LIBS})
set_target_properties(fake_program PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${fakes})
# Linked against the switch and the host library; both are found by LD_LIBRARY_PATH.
add_executable(fake_linked_program fake_nvshmem/fake_program.cpp)
target_link_options(fake_linked_program PRIVATE -Wl,--no-as-needed)
target_link_libraries(fake_linked_program PRIVATE nvshmem_efa_shim ${CMAKE_DL_LIBS})
set_target_properties(fake_linked_program PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${fakes} SKIP_BUILD_RPATH ON)

foreach(name test_fallback test_shim test_plugin_files)
  target_compile_definitions(${name} PRIVATE FAKES="${fakes}" INSTALLED="${installed}")
  add_dependencies(${name} stock_good stock_failing stock_crashing stock_libfabric stock_libfabric5 stock_missing fake_host fake_program
    fake_linked_program nvshmem_efa_shim)
endforeach()
