// SPDX-License-Identifier: Apache-2.0
// CUDA modules that want the device state's address in a symbol of their own: docs/modules.md.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "cuda_stream.h"
#include "fabric/fabric.h"
#include "nvshmem_efa/module_record.h"
#include "status.h"

namespace nvshmem_efa {

// What a driver module's symbol nvshmem_efa_state_layout must measure (module.cuh).
constexpr size_t module_layout_bytes(uint32_t version, uint32_t bytes) { return size_t{version} * 4096 + bytes; }

// Any thread. No lock is held while code of a module or the loader runs, since either may wait for the other.
class ModuleRegistry {
   public:
    // Modules built for another version or size of the state are refused. `trial_ms`: see retry().
    ModuleRegistry(uint32_t state_version, uint32_t state_bytes, uint32_t trial_ms = 2000);
    ~ModuleRegistry();

    // From now on symbols hold `state`, those of modules that come later too. kCuda: on the GPU that is current on the
    // calling thread. Not beside a kernel that waits for this thread: finding a symbol may have to wait for the GPU. A
    // module whose symbol cannot be written is named in the log; the others are served.
    Status publish(const void* state, MemoryKind posters);
    // Symbols hold null again. The same rule about kernels.
    void withdraw();

    // kMismatch: it was built with other headers.
    Status add(nvshmem_efa_module* record);
    void remove(const nvshmem_efa_module* record);
    // A CUmodule, which stays loaded until it is removed; its error is the caller's to report.
    Status add_driver(void* module);
    Status remove_driver(void* module);

    std::string json();

   private:
    struct Entry;
    struct Writer;
    struct Wanted;
    using Entries = std::list<std::shared_ptr<Entry>>;
    using Lock = std::unique_lock<std::mutex>;

    Wanted wanted(const Entry& entry) const;
    static Status write(const Entry& entry, const Wanted& want);
    Status settle(Lock& lock, Entry& entry);
    Status insert(std::shared_ptr<Entry> entry, bool is_tried_again);
    bool erase(const void* identity);
    void settle_all(const char* occasion);
    void watch();
    void retry();

    const uint32_t state_version_;
    const uint32_t state_bytes_;
    const uint32_t trial_ms_;
    std::mutex lock_;
    std::condition_variable calm_;  // an entry is no longer busy, or the watcher has ended
    Entries entries_;
    const void* state_ = nullptr;
    MemoryKind posters_ = MemoryKind::kHost;
    std::shared_ptr<Writer> writer_;  // of the GPU that was current at publish()
    bool watching_ = false;
};

// The process's registry, for this library's DeviceState. Never destroyed: modules outlive every static object.
ModuleRegistry& module_registry();

inline Status module_registry_publish(const void* state_at_posters, MemoryKind posters) {
    return module_registry().publish(state_at_posters, posters);
}
inline void module_registry_withdraw() { module_registry().withdraw(); }

}  // namespace nvshmem_efa
