// SPDX-License-Identifier: Apache-2.0
// Real time: all software devices of this process, their memory and their wire, one lock, and the thread that drives
// them. Threads that wait may lend a hand through Nic::progress().
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "device.h"
#include "fault_plan.h"
#include "knobs.h"
#include "process_wire.h"
#include "soft_nic.h"

namespace nvshmem_efa::soft {

struct EngineOptions {
    int rails = 1;
    int pe = -1;  // if known already; else log_pe() tells, when the job is connected
    Knobs knobs;
};

class Engine final : public NicHost, public std::enable_shared_from_this<Engine> {
   public:
    static Status open(const EngineOptions& options, std::shared_ptr<Engine>* engine);
    ~Engine() override;  // stops the thread; all Nics are gone, as they hold the engine

    std::unique_ptr<Nic> make_nic(int rail);
    SoftStats stats();
    const char* memory_kind() const { return memory_kind_; }  // "host" or "cuda"

    std::mutex& lock() override { return lock_; }
    MemoryPort& memory() override { return *memory_; }
    Clock& clock() override { return real_clock(); }
    Status join_job(const JobSecret& secret) override;
    void describe(PeerAddress* address) override;
    Status connect(const PeerAddress& peer) override { return wire_->connect(peer); }
    int fetch_fd(const PeerAddress& owner, uint64_t export_id, uint32_t index) override;
    void progress() override;
    void step_locked() override { (void)turn(); }
    uint64_t timeout_ms() const override { return static_cast<uint64_t>(options_.knobs.timeout_ms); }

   private:
    struct Turn {
        bool did_work = false;
        uint64_t now_ns = 0;
        uint64_t next_ns = 0;  // when something is due
    };
    explicit Engine(const EngineOptions& options) : options_(options) {}
    Status start();
    Status make_memory(uint64_t process_id);
    void make_devices(const Profile& profile, const std::vector<Gid>& gids);
    void plan_faults();
    Turn turn();  // lock held
    void run();

    EngineOptions options_;
    std::mutex lock_;
    std::unique_ptr<MemoryPort> memory_;
    const char* memory_kind_ = "host";
    std::unique_ptr<ProcessWire> wire_;
    std::vector<std::unique_ptr<Device>> devices_;
    Wire::Deliver deliver_;
    std::vector<PlannedFault> faults_;
    bool are_faults_armed_ = false;
    uint64_t work_seen_ = 0;
    uint64_t turn_now_ns_ = 0;
    bool is_joined_ = false;
    std::atomic<uint64_t> helped_{0};  // turns taken by progress()
    std::atomic<bool> is_stopping_{false};
    std::thread thread_;
};

}  // namespace nvshmem_efa::soft
