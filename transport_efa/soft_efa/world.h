// SPDX-License-Identifier: Apache-2.0
// The virtual world: N PEs with R software devices each, one thread, one seed, virtual nanoseconds. The PEs' code is
// ordinary blocking code; it runs in fibers, and each turn of a wait loop (Clock::relax) lets the others go on.
// A run is a function of its options and of the code that runs in it: same seed, same trace_hash().
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "clock.h"
#include "fiber.h"
#include "soft_nic.h"
#include "wire_inproc.h"

namespace nvshmem_efa::soft {

struct WorldOptions {
    int n_pes = 2;
    int rails = 1;
    std::string profile = "efa3";
    Faults faults{.reorder_ns = 2000};
    uint64_t seed = 1;
    bool use_timing = true;
    uint32_t wire_refusals_ppm = 0;         // sends that find the wire full
    uint64_t unresponsive_ns = 20'000'000;  // status 13 after this
    uint64_t time_limit_ns = 600'000'000'000;  // run() fails beyond it
};

class World {
   public:
    explicit World(const WorldOptions& options);  // an unknown profile aborts: it is the test's mistake
    ~World();                                     // abandons fibers that have not ended; Nics must be gone
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    std::vector<std::unique_ptr<Nic>> nics(int pe);  // this PE's rails, as open_soft_nics() would give them
    Clock& clock(int pe);
    Device& device(int pe, int rail);

    // `body` runs in run(), as if it were that PE's thread. What it throws comes out of run().
    void spawn(int pe, std::function<void()> body);
    // Called between the PEs' turns, as an agent's thread would be; true when it did something. Runs until removed.
    int add_poller(int pe, std::function<bool()> poll);
    void remove_poller(int id);

    // Runs until every spawned body has ended. kTimeout names the PEs that wait when the time limit is reached.
    Status run();
    // One turn: something runs, or time goes on to the next event. For code outside run(); relax() does it there.
    void turn();

    void kill_pe(int pe);               // its devices neither send nor answer any more
    void kill_rail(int pe, int rail);
    void set_faults(const Faults& faults);

    uint64_t now_ns() const { return now_ns_; }
    uint64_t trace_hash() const;
    SoftStats stats() const;

   private:
    class PeClock;
    class PeHost;
    struct Runner {  // a PE's body or a poller
        int pe = 0;
        int id = 0;
        std::unique_ptr<Fiber> fiber;
        std::function<bool()> poll;
        bool is_idle = false;
    };
    void relax();
    bool run_one();
    void pass_time();
    bool step_devices();
    std::string waiting_pes() const;

    WorldOptions options_;
    uint64_t now_ns_ = 1000;
    Prng prng_;
    InprocWire wire_;
    std::vector<std::unique_ptr<MemoryPort>> memories_;
    std::vector<std::unique_ptr<Device>> devices_;
    std::vector<std::unique_ptr<PeClock>> clocks_;
    std::vector<std::shared_ptr<PeHost>> hosts_;
    std::vector<Runner> runners_;
    int next_id_ = 1;
    bool is_polling_ = false;
    uint64_t next_event_ns_ = UINT64_MAX;
    uint64_t work_seen_ = 0;
    uint64_t idle_step_ns_ = 0;
    uint64_t schedule_hash_ = 0;
};

}  // namespace nvshmem_efa::soft
