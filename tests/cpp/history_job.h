// SPDX-License-Identifier: Apache-2.0
// The parts of a simulated history: what the seed drew, where things lie in a PE's memory, the PEs and their lanes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "history.h"
#include "pe_runtime/plugin_port.h"
#include "soft_efa/prng.h"
#include "soft_efa/world.h"
#include "transport.h"

namespace history {

using namespace nvshmem_efa;

inline constexpr int kPesMax = 4;
inline constexpr size_t kCells = 4, kCellBytes = 4096, kCellPayload = 3000, kCellGuard = 128;
inline constexpr size_t kMailboxes = 3, kMailboxBytes = 2048;
inline constexpr size_t kSources = 10;
inline constexpr size_t kStaticBytes = 8192;
inline constexpr size_t kFetches = 24;  // fetching atomics that a lane has under way at once

// Words of a PE's memory that signals, atomics and small puts touch.
struct LaneWords {
    uint64_t signal;  // number of the newest message of a (PE, lane)
    uint64_t guard0;
    uint64_t first, guard1, second;  // second is put behind a fence: it never overtakes first
    uint64_t counted, behind;        // an atomic, a fence, a put: behind never overtakes counted
    uint64_t flag, guard2;           // set by a plain atomic behind put and fence, as plugin ABI 3 signals
    uint64_t small[2];
};
struct SharedWords {
    uint64_t sum, tickets, exclusive, any, all, swap, compare;
    uint32_t half_sum, half_guard;
    float real_sum;
    uint32_t real_guard;
};

// One PE's registered memory.
struct alignas(4096) Heap {
    uint8_t cells[kPesMax][kLanes][kCells][kCellBytes];
    uint8_t mailboxes[kPesMax][kLanes][kMailboxes][kMailboxBytes];
    uint8_t flagged[kPesMax][kLanes][kMailboxBytes];
    uint8_t fixed[kStaticBytes];  // never written after start: what gets read
    uint8_t sources[kLanes][kSources][kCellBytes];
    uint8_t gets[kLanes][kCellBytes];
    LaneWords words[kPesMax][kLanes];
    SharedWords shared;
    struct alignas(16) Fetch {
        uint64_t value, flag;
    } fetch[kLanes][kFetches];
};

struct Shape {
    int n_pes = 2, rails = 1, abi = 3, operations = 40;
    std::string profile;
    soft::Faults faults;
    Knobs knobs;
    std::string text() const;
};
Shape draw_shape(uint64_t seed, int abi);

struct Source {
    int busy_for = -1;  // the PE whose completion frees it
};

struct Job;

// One of a PE's two threads.
struct LaneState {
    Job* job = nullptr;
    int pe = 0, lane = 0;
    soft::Prng random{0};
    std::vector<Source> sources{kSources};
    std::vector<uint64_t> messages;  // sent to each PE
    std::vector<uint64_t> pairs;     // fenced pairs written to each PE
    std::vector<uint64_t> counts;    // fenced atomic + put, to each PE
    std::vector<uint64_t> flags;     // fenced put + atomic, to each PE
    uint64_t fetches = 0;
    bool is_done = false;
    pe::Caller caller() const { return lane == 0 ? pe::Caller::kHost : pe::Caller::kProxy; }
};

struct PeState {
    std::unique_ptr<Heap> heap;    // what devices write
    std::unique_ptr<Heap> wanted;  // what must be there once the writers are quiet
    std::unique_ptr<pe::PluginPort> port;
    std::vector<abi::MemHandleBytes> handles;  // kTransportStride for each PE
    abi::BootstrapHandle boot{};
    Transport* transport = nullptr;  // inside the plugin
    LaneState lanes[kLanes];
    uint64_t collectives = 0;
    bool is_connected = false;
    uint64_t seen[kPesMax][kLanes] = {};
    uint64_t seen_flags[kPesMax][kLanes] = {};
};

// What all lanes together did to one PE's shared words.
struct SharedWanted {
    uint64_t sum = 0, exclusive = 0, any = 0, all = ~uint64_t{0}, swaps = 0, compares = 0, tickets = 0;
    uint32_t half_sum = 0;
    float real_sum = 0;
    std::set<uint64_t> drawn;
};

struct Stop {};  // thrown through a lane's stack when the history is over

struct Job {
    uint64_t seed = 0;
    Shape shape;
    std::unique_ptr<soft::World> world;
    std::vector<PeState> pes;
    std::vector<SharedWanted> shared;
    struct Collective {
        std::vector<uint8_t> bytes;
        int arrived = 0, left = 0;
    };
    std::map<uint64_t, Collective> collectives;
    std::string violation;
    uint64_t operations = 0;

    [[noreturn]] void fail(const std::string& what);
    void must(const Status& status, const std::string& what);
    void relax(int pe) { relax_once(pe); }
    void wait(int pe, const char* what, const std::function<bool()>& done);
    void allgather(int pe, const void* send, void* recv, size_t bytes);

   private:
    void relax_once(int pe);
};

// history_check.cpp
uint8_t pattern(uint64_t seed, uint64_t a, uint64_t b, size_t at);  // a byte of message or version (a, b)
void fill(Job& job, uint8_t* to, size_t bytes, uint64_t a, uint64_t b);
uint64_t message_key(int from, int lane, int to, uint64_t kind);
size_t message_bytes(const Job& job, uint64_t key, uint64_t number);
void check_arrivals(Job& job, int pe);                    // signals, flags, fenced pairs: at any moment
void check_quiet(Job& job, const LaneState& lane, int pe);  // all that `lane` wrote to `pe`
void check_end(Job& job);

// history_ops.cpp
void run_operation(LaneState& lane);
void finish_lane(LaneState& lane);

// The job whose plugin is starting just now, and as which PE: the plugin has no argument for it.
struct Starting {
    Job* job = nullptr;
    int pe = 0;
};
Starting& starting();

}  // namespace history
