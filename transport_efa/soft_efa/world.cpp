// SPDX-License-Identifier: Apache-2.0
#include "world.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace nvshmem_efa::soft {
namespace {

constexpr uint64_t kTurnNsMin = 20, kTurnNsSpan = 80;  // a turn of some code takes this long
constexpr uint64_t kEventSlackNs = 300;                // events this close are handled together
constexpr uint64_t kIdleStepFirstNs = 1'000, kIdleStepMaxNs = 10'000'000;
constexpr uint32_t kWorldPayloadMax = 64u << 10;

Gid make_gid(int pe, int rail) {
    Gid gid;
    gid.raw[0] = 0xfd;
    const uint64_t process = static_cast<uint64_t>(pe) + 1;
    std::memcpy(gid.raw + 4, &process, sizeof process);
    gid.raw[15] = static_cast<uint8_t>(rail);
    return gid;
}

}  // namespace

class World::PeClock final : public Clock {
   public:
    explicit PeClock(World& world) : world_(world) {}
    uint64_t now_ns() override { return world_.now_ns_; }
    void relax(uint32_t) override { world_.relax(); }

   private:
    World& world_;
};

class World::PeHost final : public NicHost {
   public:
    PeHost(World& world, int pe) : world_(world), pe_(pe) {}
    std::mutex& lock() override { return lock_; }
    MemoryPort& memory() override { return *world_.memories_[static_cast<size_t>(pe_)]; }
    Clock& clock() override { return world_.clock(pe_); }
    Status join_job(const JobSecret&) override { return Status(); }
    void describe(PeerAddress*) override {}
    Status connect(const PeerAddress& peer) override { return world_.wire_.connect(peer); }
    int fetch_fd(const PeerAddress&, uint64_t, uint32_t) override { return -1; }
    void progress() override {}  // the clock's relax() moves the world
    void step_locked() override { world_.step_devices(); }
    uint64_t timeout_ms() const override { return 1000; }

   private:
    World& world_;
    int pe_;
    std::mutex lock_;
};

World::World(const WorldOptions& options)
    : options_(options), prng_(mix64(options.seed) ^ 0x5eed), wire_(&now_ns_, options.seed ^ 0x31) {
    Profile profile;
    if (const Status status = find_profile(options.profile.c_str(), &profile); !status.ok()) {
        std::fprintf(stderr, "World: %s\n", status.message());
        std::abort();
    }
    wire_.set_refusals(options.wire_refusals_ppm);
    for (int pe = 0; pe < options.n_pes; ++pe) {
        memories_.push_back(make_host_memory_port());
        clocks_.push_back(std::make_unique<PeClock>(*this));
        hosts_.push_back(std::make_shared<PeHost>(*this, pe));
        for (int rail = 0; rail < options.rails; ++rail) {
            DeviceOptions device;
            device.profile = profile;
            device.faults = options.faults;
            device.use_timing = options.use_timing;
            device.check_batches = true;
            device.seed = mix64(options.seed * 1000003 + static_cast<uint64_t>(pe) * 64 + static_cast<uint64_t>(rail));
            device.gid = make_gid(pe, rail);
            device.memory = memories_.back().get();
            device.wire = &wire_;
            device.payload_max = kWorldPayloadMax;
            device.unresponsive_ns = options.unresponsive_ns;
            device.name = "pe" + std::to_string(pe) + ".soft" + std::to_string(rail);
            devices_.push_back(std::make_unique<Device>(device));
            wire_.add(devices_.back().get());
        }
    }
}

World::~World() {
    for (Runner& runner : runners_) runner.fiber.reset();
}

std::vector<std::unique_ptr<Nic>> World::nics(int pe) {
    std::vector<std::unique_ptr<Nic>> made;
    for (int rail = 0; rail < options_.rails; ++rail) {
        made.push_back(std::make_unique<SoftNic>(hosts_[static_cast<size_t>(pe)], &device(pe, rail), rail));
    }
    return made;
}

Clock& World::clock(int pe) { return *clocks_[static_cast<size_t>(pe)]; }

Device& World::device(int pe, int rail) { return *devices_[static_cast<size_t>(pe * options_.rails + rail)]; }

void World::spawn(int pe, std::function<void()> body) {
    Runner runner;
    runner.pe = pe;
    runner.id = next_id_++;
    runner.fiber = std::make_unique<Fiber>(std::move(body));
    runners_.push_back(std::move(runner));
}

int World::add_poller(int pe, std::function<bool()> poll) {
    Runner runner;
    runner.pe = pe;
    runner.id = next_id_++;
    runner.poll = std::move(poll);
    runners_.push_back(std::move(runner));
    return runners_.back().id;
}

void World::remove_poller(int id) {
    std::erase_if(runners_, [id](const Runner& runner) { return runner.id == id && runner.poll; });
}

void World::relax() {
    if (Fiber* fiber = Fiber::current()) {
        if (fiber->is_abandoned()) now_ns_ += kIdleStepMaxNs;  // lets waits in destructors run into their deadlines
        Fiber::pause();
    } else if (is_polling_) {
        if (!step_devices()) pass_time();
    } else {
        turn();
    }
}

Status World::run() {
    while (true) {
        bool is_running = false;
        for (size_t i = 0; i < runners_.size(); ++i) {
            if (!runners_[i].fiber) continue;
            if (!runners_[i].fiber->is_done()) {
                is_running = true;
                continue;
            }
            const std::exception_ptr failure = runners_[i].fiber->take_failure();
            runners_.erase(runners_.begin() + static_cast<ptrdiff_t>(i--));
            if (failure) std::rethrow_exception(failure);
        }
        if (!is_running) return Status();
        if (now_ns_ > options_.time_limit_ns)
            return Status::error(Code::kTimeout, "replay with the same seed; a wait without a deadline, or a deadlock",
                                 "the virtual world stood still at %llu ns (seed %llu), waiting: %s",
                                 static_cast<unsigned long long>(now_ns_),
                                 static_cast<unsigned long long>(options_.seed), waiting_pes().c_str());
        turn();
    }
}

std::string World::waiting_pes() const {
    std::string text;
    for (const Runner& runner : runners_) {
        if (runner.fiber && !runner.fiber->is_done()) text += (text.empty() ? "PE " : ", PE ") + std::to_string(runner.pe);
    }
    return text;
}

void World::turn() {
    const bool has_run = run_one();
    if (step_devices()) {
        idle_step_ns_ = 0;
        for (Runner& runner : runners_) runner.is_idle = false;
    } else if (!has_run) {
        pass_time();
    }
}

// Lets one runner go on that has not run since the last event; false when all have.
bool World::run_one() {
    size_t n = 0;
    for (const Runner& runner : runners_) n += !runner.is_idle && (runner.poll || !runner.fiber->is_done());
    if (n == 0) return false;
    size_t pick = prng_.below(n);
    for (size_t i = 0; i < runners_.size(); ++i) {
        Runner& runner = runners_[i];
        if (runner.is_idle || !(runner.poll || !runner.fiber->is_done())) continue;
        if (pick-- != 0) continue;
        schedule_hash_ = mix64(schedule_hash_ ^ static_cast<uint64_t>(runner.id) ^ now_ns_);
        runner.is_idle = true;
        now_ns_ += kTurnNsMin + prng_.below(kTurnNsSpan);
        if (runner.fiber) {
            runner.fiber->resume();
            return true;
        }
        is_polling_ = true;
        const auto poll = runner.poll;  // it may add or remove pollers
        const bool did_work = poll();
        is_polling_ = false;
        if (did_work) {
            for (Runner& other : runners_) other.is_idle = false;
        }
        return true;
    }
    return false;
}

// Nobody has anything to do now: on to the next event, or, where none is due, a growing step for the sake of deadlines.
void World::pass_time() {
    for (Runner& runner : runners_) runner.is_idle = false;
    if (next_event_ns_ != UINT64_MAX) {
        now_ns_ = std::max(now_ns_ + 1, next_event_ns_) + prng_.below(kEventSlackNs);
    } else {
        idle_step_ns_ = std::min(std::max(idle_step_ns_ * 2, kIdleStepFirstNs), kIdleStepMaxNs);
        now_ns_ += idle_step_ns_;
    }
    step_devices();
}

// True when any device did anything.
bool World::step_devices() {
    next_event_ns_ = UINT64_MAX;
    uint64_t work = 0;
    for (const auto& device : devices_) (void)device->step(now_ns_);
    for (const auto& device : devices_) {
        next_event_ns_ = std::min(next_event_ns_, device->next_event_ns());
        work += device->work_done();
    }
    const bool did_work = work != work_seen_;
    work_seen_ = work;
    return did_work;
}

void World::kill_pe(int pe) {
    for (int rail = 0; rail < options_.rails; ++rail) kill_rail(pe, rail);
}

void World::kill_rail(int pe, int rail) { device(pe, rail).set_dead_after(0); }

void World::set_faults(const Faults& faults) {
    for (const auto& device : devices_) device->set_faults(faults);
}

uint64_t World::trace_hash() const {
    uint64_t hash = schedule_hash_;
    for (const auto& device : devices_) hash = mix64(hash ^ device->trace_hash());
    return hash;
}

SoftStats World::stats() const {
    SoftStats sum;
    for (const auto& device : devices_) sum.add(device->stats());
    return sum;
}

}  // namespace nvshmem_efa::soft
