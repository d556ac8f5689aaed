// SPDX-License-Identifier: Apache-2.0
// A transport plugin for tests of the PE runtime: the PEs are threads of one process, so that a put is a memcpy. It is
// as lazy as the interface lets it be (non-blocking operations happen at fence or quiet, in shuffled order) and as
// strict as it can be (handles, addresses, call order, one thread a lane).
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "abi/abi3.h"
#include "abi/abi4.h"
#include "abi/abi6.h"
#include "pe_loopback_plugin.h"

using namespace nvshmem_efa::abi;

namespace {

constexpr uint32_t kHandleMagic = 0x4c4f4f50;

struct Handle {
    uint32_t magic;
    int pe;
    uint64_t base;
    uint64_t bytes;
    bool is_local_only;
};

struct Copy {
    int pe;
    uint64_t base;  // of the remote chunk
    char* to;
    const char* from;
    size_t bytes;
};

struct State {
    int abi = 0;
    int pe = -1, n_pes = 0;
    bool is_connected = false;
    std::atomic<int> inside[2] = {};
    std::vector<Copy> pending[2];  // under memory_lock
    uint64_t random = 1;
    char* paths[1] = {nullptr};
};

// Held for every access to memory: the one serialiser of all atomics, and what keeps a PE that ends from taking its heap
// away under somebody's copy.
std::mutex memory_lock;
std::set<uint64_t> live_chunks;
std::mutex log_lock;
std::string call_log;
std::string error_text;
std::string fail_op;
int fail_countdown = -1;
std::atomic<uint64_t> n_calls{0};

void note(const State& state, const char* what) {
    std::lock_guard guard(log_lock);
    if (state.pe <= 0 && call_log.size() < 4000) call_log += std::string(what) + " ";
}

int refuse(const std::string& text) {
    std::lock_guard guard(log_lock);
    if (error_text.empty()) error_text = text;
    return kHostInvalidValue;
}

bool is_told_to_fail(const char* op) {
    std::lock_guard guard(log_lock);
    if (fail_op != op || fail_countdown < 0) return false;
    return fail_countdown-- == 0;
}

// Nobody else may be in the plugin on the same lane.
class Inside {
   public:
    Inside(State& state, int lane) : count_(state.inside[lane]) { is_alone_ = count_.fetch_add(1) == 0; }
    ~Inside() { count_.fetch_sub(1); }
    bool is_alone() const { return is_alone_; }

   private:
    std::atomic<int>& count_;
    bool is_alone_;
};

bool covers(const MemHandleBytes* bytes, const void* at, size_t length, int pe) {
    Handle handle;
    if (!bytes) return false;
    std::memcpy(&handle, bytes, sizeof handle);
    const auto address = reinterpret_cast<uint64_t>(at);
    return handle.magic == kHandleMagic && handle.pe == pe && live_chunks.count(handle.base) &&
           address >= handle.base && address + length <= handle.base + handle.bytes;
}

void flush(State& state, int lane, int pe) {
    std::vector<Copy> now, later;
    for (const Copy& copy : state.pending[lane]) (copy.pe == pe ? now : later).push_back(copy);
    state.pending[lane] = later;
    for (size_t i = now.size(); i > 1; --i) {
        state.random = state.random * 6364136223846793005u + 1442695040888963407u;
        std::swap(now[i - 1], now[(state.random >> 33) % i]);
    }
    for (const Copy& copy : now)
        if (live_chunks.count(copy.base)) std::memcpy(copy.to, copy.from, copy.bytes);
}

int transfer(State& state, int pe, const RmaVerb& verb, RmaMemdesc* remote, RmaMemdesc* local,
             const RmaBytesdesc& bytes, int lane) {
    ++n_calls;
    std::lock_guard guard(memory_lock);
    if (pe < 0 || pe >= state.n_pes || !state.is_connected)
        return refuse("loopback: PE out of range, or not connected");
    const size_t length = bytes.nelems * static_cast<size_t>(bytes.elembytes);
    const auto reach = static_cast<size_t>(std::max(bytes.src_stride, bytes.dst_stride));
    const bool is_put = verb.desc == kOpPut || verb.desc == kOpP || verb.desc == kOpPutSignal;
    if (!covers(remote->handle, remote->ptr, length * reach, pe))
        return refuse("loopback: the remote handle does not cover the address");
    const bool may_be_stack = verb.desc == kOpP || (verb.desc == kOpG && lane == 0);
    if (may_be_stack ? local->handle != nullptr : !covers(local->handle, local->ptr, length, state.pe))
        return refuse("loopback: the local handle does not cover the address");
    const size_t width = static_cast<size_t>(bytes.elembytes);
    const auto remote_step = static_cast<size_t>(is_put ? bytes.dst_stride : bytes.src_stride) * width;
    const auto local_step = static_cast<size_t>(is_put ? bytes.src_stride : bytes.dst_stride) * width;
    for (size_t i = 0; i < (reach == 1 ? 1 : bytes.nelems); ++i) {
        char* at_remote = static_cast<char*>(remote->ptr) + i * remote_step;
        char* at_local = static_cast<char*>(local->ptr) + i * local_step;
        const Copy copy{pe, reinterpret_cast<const Handle*>(remote->handle)->base, is_put ? at_remote : at_local,
                        is_put ? at_local : at_remote, reach == 1 ? length : width};
        if (verb.desc == kOpP && length == 8) {
            std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(copy.to))
                .store(*reinterpret_cast<const uint64_t*>(copy.from));
        } else if (verb.is_nbi && verb.desc != kOpP && verb.desc != kOpPutSignal) {
            state.pending[lane].push_back(copy);
        } else {
            std::memcpy(copy.to, copy.from, copy.bytes);
        }
    }
    return 0;
}

// Of whole numbers, which is all that the tests add.
uint64_t add_half(uint64_t before, uint64_t operand) {
    const auto whole = [](uint64_t half) { return half ? (((half & 0x3ff) | 0x400) << ((half >> 10) - 15)) >> 10 : 0; };
    const uint64_t sum = whole(before & 0xffff) + whole(operand & 0xffff);
    uint64_t exponent = 0;
    while (sum >> exponent > 1) ++exponent;
    return sum ? (exponent + 15) << 10 | (((sum << 10) >> exponent) & 0x3ff) : 0;
}

template <class Float, class Bits>
uint64_t add_float(uint64_t before, uint64_t operand) {
    Float a, b;
    std::memcpy(&a, &before, sizeof a);
    std::memcpy(&b, &operand, sizeof b);
    a += b;
    Bits bits;
    std::memcpy(&bits, &a, sizeof a);
    return bits;
}

uint64_t after(int opcode, uint64_t before, uint64_t operand, uint64_t compare, int bytes, bool is_float) {
    switch (opcode) {
        case kAmoInc:
        case kAmoFetchInc: return before + 1;
        case kAmoAdd:
        case kAmoFetchAdd:
        case kAmoSignalAdd:
            if (is_float && bytes == 2) return add_half(before, operand);
            if (is_float)
                return bytes == 4 ? add_float<float, uint32_t>(before, operand)
                                  : add_float<double, uint64_t>(before, operand);
            return before + operand;
        case kAmoAnd:
        case kAmoFetchAnd: return before & operand;
        case kAmoOr:
        case kAmoFetchOr: return before | operand;
        case kAmoXor:
        case kAmoFetchXor: return before ^ operand;
        case kAmoFetch: return before;
        case kAmoCompareSwap: return before == compare ? operand : before;
        default: return operand;
    }
}

int atomic(State& state, int pe, int opcode, bool is_float, AmoMemdesc* target, int bytes) {
    ++n_calls;
    std::lock_guard guard(memory_lock);
    if (pe < 0 || pe >= state.n_pes ||
        !covers(target->remote.handle, target->remote.ptr, static_cast<size_t>(bytes), pe))
        return refuse("loopback: the word of an atomic is not registered");
    const bool fetches = opcode >= kAmoFetch;
    if (fetches && !covers(target->ret_handle, target->ret_ptr, 16, state.pe))
        return refuse("loopback: the result's place is not registered");
    uint64_t before = 0;
    const auto apply = [&](auto* at) {
        std::atomic_ref word(*at);
        before = word.load();
        word.store(static_cast<std::remove_pointer_t<decltype(at)>>(
            after(opcode, before, target->value, target->compare, bytes, is_float)));
    };
    if (bytes == 8) apply(static_cast<uint64_t*>(target->remote.ptr));
    else if (bytes == 4) apply(static_cast<uint32_t*>(target->remote.ptr));
    else apply(static_cast<uint16_t*>(target->remote.ptr));
    if (!fetches) return 0;
    auto* result = static_cast<uint64_t*>(target->ret_ptr);
    std::atomic_ref<uint64_t>(result[0]).store(before);
    std::atomic_ref<uint64_t>(result[1]).store(target->ret_flag);  // last: the reader polls it
    return 0;
}

int make_handle(State& state, MemHandleBytes* out, void* buffer, size_t bytes, bool local_only) {
    if (is_told_to_fail("get_mem_handle")) return refuse("loopback: told to fail in get_mem_handle");
    note(state, "get_mem_handle");
    const Handle handle{kHandleMagic, state.pe, reinterpret_cast<uint64_t>(buffer), bytes, local_only};
    std::memset(out, 0, sizeof *out);
    std::memcpy(out, &handle, sizeof handle);
    std::lock_guard guard(memory_lock);
    live_chunks.insert(handle.base);
    return 0;
}

template <class Transport>
struct Entries {
    static State& state(Transport* t) { return *static_cast<State*>(t->state); }
    static constexpr bool kHasPutSignal = requires(Transport* t) { t->host_ops.put_signal; };

    static int can_reach_peer(int* access, PeInfo*, Transport* t) {
        note(state(t), "can_reach_peer");
        *access = kCapCpuWrite | kCapCpuRead | kCapCpuAtomics;
        return 0;
    }
    static int connect(Transport* t) {
        note(state(t), "connect_endpoints");
        state(t).pe = t->my_pe;
        state(t).n_pes = t->n_pes;
        state(t).random = static_cast<uint64_t>(t->my_pe) + 1;
        state(t).is_connected = true;
        std::vector<int> all(static_cast<size_t>(t->n_pes));
        if (t->boot_handle->allgather(&t->my_pe, all.data(), sizeof(int), t->boot_handle) != 0)
            return refuse("loopback: allgather failed");
        for (int i = 0; i < t->n_pes; ++i)
            if (all[static_cast<size_t>(i)] != i) return refuse("loopback: allgather gave the wrong order");
        return t->boot_handle->barrier(t->boot_handle);
    }
    static int connect3(Transport* t, int*, int n) {
        return n == 1 ? connect(t) : refuse("loopback: one device expected");
    }
    static int connect4(Transport* t, int*, int n, int*, int) {
        return n == 1 ? connect(t) : refuse("loopback: one device expected");
    }
    static int get_mem_handle(MemHandleBytes* handle, void* buffer, size_t bytes, Transport* t, bool local_only) {
        return make_handle(state(t), handle, buffer, bytes, local_only);
    }
    static int release_mem_handle(MemHandleBytes* handle, Transport* t) {
        note(state(t), "release_mem_handle");
        const uint64_t base = reinterpret_cast<Handle*>(handle)->base;
        std::lock_guard guard(memory_lock);
        if (!covers(handle, reinterpret_cast<void*>(base), 1, state(t).pe))
            return refuse("loopback: released a foreign handle");
        live_chunks.erase(base);
        return 0;
    }
    static int finalize(Transport* t) {
        note(state(t), "finalize");
        delete &state(t);
        std::free(t);
        return 0;
    }
    static int show_info(Transport*, int) { return 0; }
    static int progress(Transport*) {
        return is_told_to_fail("progress") ? refuse("loopback: told to fail in progress") : 0;
    }
    static int rma(Transport* t, int pe, RmaVerb verb, RmaMemdesc* remote, RmaMemdesc* local, RmaBytesdesc bytes,
                   int lane) {
        const Inside inside(state(t), lane);
        if (!inside.is_alone()) return refuse("loopback: two threads in one lane");
        if (is_told_to_fail("rma")) return refuse("loopback: told to fail in rma");
        return transfer(state(t), pe, verb, remote, local, bytes, lane);
    }
    template <class Verb>
    static int amo(Transport* t, int pe, void*, Verb verb, AmoMemdesc* target, AmoBytesdesc bytes, int lane) {
        const Inside inside(state(t), lane);
        if (!inside.is_alone()) return refuse("loopback: two threads in one lane");
        bool is_float = false;
        if constexpr (requires { verb.is_float; }) is_float = verb.is_float;
        return atomic(state(t), pe, verb.desc, is_float, target, bytes.elembytes);
    }
    static int order(Transport* t, int pe, int lane) {
        const Inside inside(state(t), lane);
        if (!inside.is_alone()) return refuse("loopback: two threads in one lane");
        std::lock_guard guard(memory_lock);
        flush(state(t), lane, pe);
        return 0;
    }
    static int fence3(Transport* t, int pe, int lane) { return order(t, pe, lane); }
    static int fence4(Transport* t, int pe, int lane, int) { return order(t, pe, lane); }
    static int quiet(Transport* t, int pe, int lane) {
        return is_told_to_fail("quiet") ? refuse("loopback: told to fail in quiet") : order(t, pe, lane);
    }
    template <class Verb>
    static int put_signal(Transport* t, int pe, RmaVerb verb, std::vector<RmaMemdesc>& remote,
                          std::vector<RmaMemdesc>& local, std::vector<RmaBytesdesc>& bytes, Verb signal_verb,
                          AmoMemdesc* signal, AmoBytesdesc signal_bytes, int lane) {
        const Inside inside(state(t), lane);
        if (!inside.is_alone()) return refuse("loopback: two threads in one lane");
        for (size_t i = 0; i < remote.size(); ++i)
            if (const int rc = transfer(state(t), pe, verb, &remote[i], &local[i], bytes[i], lane)) return rc;
        return atomic(state(t), pe, signal_verb.desc, false, signal, signal_bytes.elembytes);
    }
    static int add_remote(Transport* t, int stride, MemHandleBytes* handles, uint64_t, size_t bytes) {
        note(state(t), "add_device_remote_mem_handles");
        for (int pe = 0; pe < t->n_pes; ++pe) {
            Handle handle;
            std::memcpy(&handle, handles + pe * stride + t->index, sizeof handle);
            if (handle.magic != kHandleMagic || handle.pe != pe || handle.bytes != bytes)
                return refuse("loopback: not this PE's handle");
        }
        return 0;
    }

    static Transport* make(int api_version) {
        auto* t = static_cast<Transport*>(std::calloc(1, kTransportBytesMin));
        auto* state = new State;
        state->abi = abi_number(api_version);
        note(*state, "init");
        t->api_version = api_version;
        t->attr = kAttrConnected;
        t->n_devices = 1;
        t->state = state;
        t->is_successfully_initialized = true;
        t->device_pci_paths = state->paths;
        auto& ops = t->host_ops;
        ops.can_reach_peer = can_reach_peer;
        ops.get_mem_handle = get_mem_handle;
        ops.release_mem_handle = release_mem_handle;
        ops.finalize = finalize;
        ops.show_info = show_info;
        ops.progress = progress;
        ops.rma = rma;
        ops.amo = amo;
        ops.quiet = quiet;
        ops.add_device_remote_mem_handles = add_remote;
        if constexpr (kHasPutSignal) {
            ops.connect_endpoints = connect4;
            ops.fence = fence4;
            ops.put_signal = put_signal;
        } else {
            ops.connect_endpoints = connect3;
            ops.fence = fence3;
        }
        return t;
    }
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int nvshmemt_init(void** out, void*, int api_version) {
    if (is_told_to_fail("init")) return refuse("loopback: told to fail in init");
    switch (abi_number(api_version)) {
        case 3: *out = Entries<v3::Transport>::make(api_version); return 0;
        case 4:
        case 5: *out = Entries<v4::Transport>::make(api_version); return 0;
        default: *out = Entries<v6::Transport>::make(api_version); return 0;
    }
}

__attribute__((visibility("default"))) const char* nvshmem_efa_last_error(int* code) {
    static thread_local std::string copy;
    std::lock_guard guard(log_lock);
    copy = error_text;
    *code = copy.empty() ? 0 : 10;
    return copy.c_str();
}

__attribute__((visibility("default"))) const char* nvshmem_efa_stats_json() {
    static thread_local std::string text;
    text = "{\"calls\": " + std::to_string(n_calls.load()) + "}";
    return text.c_str();
}

__attribute__((visibility("default"))) const char* loopback_log() { return call_log.c_str(); }

__attribute__((visibility("default"))) void loopback_reset(const char* op, int countdown) {
    std::lock_guard guard(log_lock);
    call_log.clear();
    error_text.clear();
    fail_op = op;
    fail_countdown = countdown;
}
}
