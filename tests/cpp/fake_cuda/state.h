// SPDX-License-Identifier: Apache-2.0
// The fake driver's insides.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "fake_cuda.h"

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))

namespace fake {

inline constexpr int kInvalidValue = 1, kOutOfMemory = 2, kInvalidContext = 201, kAlreadyMapped = 208,
                     kAlreadyRegistered = 712, kNotReady = 600, kNotPermitted = 800, kForbidden = 999;
inline constexpr size_t kBlock = 2u << 20;

struct Block {  // by device address, or by host address for pinned memory
    size_t bytes = 0;
    uint8_t* cpu = nullptr;
    int fd = -1;
    int device = 0;
    uint64_t id = 0;
    unsigned flags = 0;   // of a host registration
    uint64_t handle = 0;  // of the VMM allocation mapped here
    bool is_host = false;
    bool is_ipc = false;
    bool has_access = true;
    std::string ipc_key;
};

struct Handle {
    size_t bytes = 0;
    int fd = -1;
    int device = 0;
    int uses = 0;
    bool is_exportable = false;
};

struct Plan {
    uint64_t calls = 0;
    uint32_t skip = 0;
    uint32_t count = 0;
    int code = 0;
};

struct State {
    std::mutex lock;
    std::map<uint64_t, Block> blocks;
    std::map<uint64_t, size_t> reservations;
    std::map<uint64_t, Handle> handles;
    std::map<std::string, Plan> plans;
    std::map<std::string, int> open_ipc;
    std::map<std::pair<void*, std::string>, std::pair<uint64_t, size_t>> globals;  // of modules
    int host_registrations = 0;
    uint64_t last_id = 0;
    uint64_t violations = 0;
    std::atomic<bool> is_forbidden{false}, is_stalled{false}, is_full{false}, is_old{false}, is_capturing{false};
    std::atomic<uint32_t> delay_us{20};
    std::atomic<uint64_t> seed{1};
    std::atomic<uint64_t> same_device_copies{0};
    std::atomic<uint64_t> mapped_at{0};
    std::atomic<void (*)(void*)> kernel{nullptr};
    std::atomic<size_t> kernel_bytes{0};  // of its parameter, where that is a struct
    std::atomic<int> device{0};
};

State& state();
int enter(const char* name, bool allocates, bool needs_context);  // 0, or what the call has to return
// The block that holds [addr, addr+bytes), or null. With state().lock held.
Block* find_block(uint64_t addr, size_t bytes);
uint8_t* cpu_of(uint64_t addr, size_t bytes);  // any readable address; null where a device address is not accessible
bool is_device(uint64_t addr);
int make_memfd(size_t bytes);

class Stream {
   public:
    Stream();
    ~Stream();
    void push(std::function<void()> work);
    bool is_idle();

   private:
    void run();
    void nap();
    std::mutex lock_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> work_;
    bool busy_ = false, stop_ = false;
    uint64_t random_;
    std::thread thread_;
};

}  // namespace fake
