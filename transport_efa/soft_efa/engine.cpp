// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <time.h>

#include <algorithm>

#include "log.h"

namespace nvshmem_efa::soft {
namespace {

constexpr size_t kPollMax = 64;
constexpr uint64_t kNapNs = 20'000;           // between looks at the doorbells, once nothing happens
constexpr uint64_t kLongNapNs = 100'000;      // after kLongIdleNs of nothing
constexpr uint64_t kLongIdleNs = 50'000'000;
constexpr uint64_t kSpinManyCoresNs = 5'000'000;
constexpr uint64_t kSpinFewCoresNs = 50'000;  // PEs outnumber cores: give them away soon
constexpr int kManyCores = 8;

uint64_t random_64() {
    uint64_t value = 0;
    while (getrandom(&value, sizeof value, 0) != sizeof value || value == 0) {
    }
    return value;
}

int usable_cores() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

Gid make_gid(uint64_t process_id, int rail) {
    Gid gid;
    gid.raw[0] = 0xfd;
    std::memcpy(gid.raw + 4, &process_id, sizeof process_id);
    gid.raw[15] = static_cast<uint8_t>(rail);
    return gid;
}

Faults faults_of(const Knobs& knobs) {
    Faults faults;
    faults.reorder_ns = static_cast<uint64_t>(knobs.soft_reorder_ns);
    faults.duplicate_ppm = static_cast<uint32_t>(knobs.soft_duplicate_ppm);
    faults.delay_ppm = static_cast<uint32_t>(knobs.soft_delay_ppm);
    faults.rnr_ppm = static_cast<uint32_t>(knobs.soft_rnr_ppm);
    return faults;
}

std::mutex g_engines_lock;
std::weak_ptr<Engine> g_engine;  // of this process, for soft_stats()

}  // namespace

Status Engine::open(const EngineOptions& options, std::shared_ptr<Engine>* engine) {
    std::shared_ptr<Engine> made(new Engine(options));
    EFA_TRY(made->start());
    {
        const std::lock_guard guard(g_engines_lock);
        g_engine = made;
    }
    *engine = std::move(made);
    return Status();
}

Status Engine::start() {
    Profile profile;
    EFA_TRY(find_profile(options_.knobs.soft_profile.c_str(), &profile));
    EFA_TRY(parse_fault_plan(options_.knobs.soft_fault, &faults_));
    for (const PlannedFault& fault : faults_) {
        if (fault.kind == PlannedFault::Kind::kDeadRail && fault.which >= options_.rails)
            return Status::error(Code::kConfig, "rails are numbered from 0",
                                 "NVSHMEM_EFA_SOFT_FAULT names rail %d of %d", fault.which, options_.rails);
    }
    const uint64_t process_id = random_64();
    EFA_TRY(make_memory(process_id));
    ProcessWireOptions wire;
    wire.process_id = process_id;
    for (int rail = 0; rail < options_.rails; ++rail) wire.local_gids.push_back(make_gid(process_id, rail));
    wire.memory = memory_.get();
    wire.engine_lock = &lock_;
    EFA_TRY(make_process_wire(wire, &wire_));
    make_devices(profile, wire.local_gids);
    deliver_ = [this](const PacketHeader& header, const void* payload) {
        const size_t rail = header.dst_gid.raw[15];
        if (rail < devices_.size() && devices_[rail]->gid() == header.dst_gid)
            devices_[rail]->receive(header, payload, turn_now_ns_);
    };
    thread_ = std::thread([this] { run(); });
    return Status();
}

Status Engine::make_memory(uint64_t process_id) {
    const Status status = make_cuda_memory_port(process_id, &memory_);
    if (status.ok()) {
        memory_kind_ = "cuda";
        return Status();
    }
    if (status.code() != Code::kMissing) return Status::error(status.code(), nullptr, "%s", status.message());
    EFA_LOG(kDebug, "soft", "host memory only: %s", status.message());
    memory_ = make_host_memory_port();
    return Status();
}

void Engine::make_devices(const Profile& profile, const std::vector<Gid>& gids) {
    constexpr uint32_t kPayloadMost = 128u << 10;
    for (size_t rail = 0; rail < gids.size(); ++rail) {
        DeviceOptions options;
        options.profile = profile;
        options.faults = faults_of(options_.knobs);
        uint64_t identity;  // differs between processes, so that their draws do
        std::memcpy(&identity, gids[rail].raw + 4, sizeof identity);
        options.seed = static_cast<uint64_t>(options_.knobs.soft_seed) ^ mix64(identity + rail);
        options.gid = gids[rail];
        options.memory = memory_.get();
        options.wire = wire_.get();
        // Several packets must fit into a ring at once.
        const auto eighth = static_cast<uint32_t>(std::min<int64_t>(options_.knobs.soft_ring_bytes / 8, kPayloadMost));
        options.payload_max = std::max(eighth, profile.caps.mtu);
        options.unresponsive_ns = static_cast<uint64_t>(options_.knobs.timeout_ms) * 1'000'000 / 2;
        options.name = "soft" + std::to_string(rail);
        devices_.push_back(std::make_unique<Device>(options));
    }
}

Engine::~Engine() {
    is_stopping_.store(true, std::memory_order_relaxed);
    if (thread_.joinable()) thread_.join();
    wire_.reset();  // before the devices and the memory that it uses
    devices_.clear();
}

std::unique_ptr<Nic> Engine::make_nic(int rail) {
    return std::make_unique<SoftNic>(shared_from_this(), devices_[static_cast<size_t>(rail)].get(), rail);
}

Status Engine::join_job(const JobSecret& secret) {
    const auto held = take_lock();
    if (is_joined_) return Status();  // every rail's Nic is told
    EFA_TRY(wire_->join_job(secret));
    is_joined_ = true;
    return Status();
}

void Engine::describe(PeerAddress* address) {
    const auto held = take_lock();
    wire_->describe_self(address);
}

int Engine::fetch_fd(const PeerAddress& owner, uint64_t export_id, uint32_t index) {
    return wire_->fetch_fd(owner, export_id, index);
}

// A dead peer is a PE whose devices fall silent, so every process must learn which PE it is.
void Engine::plan_faults() {
    const int pe = options_.pe >= 0 ? options_.pe : log_pe();
    for (const PlannedFault& fault : faults_) {
        if (fault.kind == PlannedFault::Kind::kDeadRail) {
            devices_[static_cast<size_t>(fault.which)]->set_dead_after(fault.after_packets);
        } else if (fault.which == pe) {
            for (const auto& device : devices_) device->set_dead_after(fault.after_packets);
        }
    }
    are_faults_armed_ = pe >= 0;
}

Engine::Turn Engine::turn() {
    if (!faults_.empty() && !are_faults_armed_) plan_faults();
    Turn turn;
    turn.now_ns = turn_now_ns_ = real_clock().now_ns();
    turn.next_ns = UINT64_MAX;
    size_t room = kPollMax;
    for (const auto& device : devices_) room = std::min<size_t>(room, device->room());
    if (room != 0) (void)wire_->poll(deliver_, room);
    uint64_t work = 0;
    for (const auto& device : devices_) (void)device->step(turn.now_ns);
    for (const auto& device : devices_) {
        turn.next_ns = std::min(turn.next_ns, device->next_event_ns());
        work += device->work_done();
    }
    wire_->flush();
    turn.did_work = work != work_seen_;
    work_seen_ = work;
    return turn;
}

void Engine::progress() {
    if (!lock_.try_lock()) return;  // somebody else is at it
    const std::lock_guard held(lock_, std::adopt_lock);
    (void)turn();
    helped_.fetch_add(1, std::memory_order_relaxed);
}

// The device's thread. It spins while there is work; then it naps, so that processes that outnumber the cores do not
// starve each other, and leaves the devices to threads that wait and call progress().
void Engine::run() {
    prctl(PR_SET_NAME, "efa-soft");
    prctl(PR_SET_TIMERSLACK, 1000);
    memory_->on_engine_thread_start();
    const bool has_many_cores = usable_cores() >= kManyCores;
    const uint64_t spin_ns = has_many_cores ? kSpinManyCoresNs : kSpinFewCoresNs;
    uint64_t busy_ns = real_clock().now_ns();
    uint64_t helped_seen = 0;
    while (!is_stopping_.load(std::memory_order_relaxed)) {
        Turn done;
        {
            const std::lock_guard held(lock_);
            done = turn();
        }
        const uint64_t helped = helped_.load(std::memory_order_relaxed);
        const bool is_helped = helped != helped_seen;
        helped_seen = helped;
        if (is_wanted()) sched_yield();
        if (done.did_work) busy_ns = done.now_ns;
        // Where cores are few, a helper's turns are as good as ours. Where they are not, keep looking: a helper leaves as
        // soon as its own wait ends, and what it posts next must not find everybody asleep.
        const bool keeps_looking = has_many_cores || !is_helped;
        if (done.next_ns <= done.now_ns + kNapNs || (keeps_looking && done.now_ns - busy_ns < spin_ns)) {
            if (has_many_cores) {
                real_clock().relax(0);
            } else {
                sched_yield();
            }
            continue;
        }
        const timespec nap{0, static_cast<long>(done.now_ns - busy_ns > kLongIdleNs ? kLongNapNs : kNapNs)};
        nanosleep(&nap, nullptr);
    }
}

SoftStats Engine::stats() {
    const auto held = take_lock();
    SoftStats sum;
    for (const auto& device : devices_) sum.add(device->stats());
    return sum;
}

SoftStats soft_stats() {
    std::shared_ptr<Engine> engine;
    {
        const std::lock_guard guard(g_engines_lock);
        engine = g_engine.lock();
    }
    return engine ? engine->stats() : SoftStats{};
}

}  // namespace nvshmem_efa::soft

namespace nvshmem_efa {

Status open_soft_nics(const OpenOptions& options, std::vector<std::unique_ptr<Nic>>* nics) {
    soft::EngineOptions engine_options;
    engine_options.knobs = knobs();
    engine_options.pe = options.pe;
    const int rails = static_cast<int>(knobs().soft_rails);
    engine_options.rails = rails;
    std::vector<int> chosen;
    for (int rail = 0; rail < rails; ++rail) {
        const std::string name = "soft" + std::to_string(rail);
        const std::string list = "," + options.device_filter + ",";
        if (!options.device_filter.empty() && list.find("," + name + ",") == std::string::npos) continue;
        if (options.rails_max == 0 || static_cast<int>(chosen.size()) < options.rails_max) chosen.push_back(rail);
    }
    if (chosen.empty() || options.rails_max > static_cast<int>(chosen.size()))
        return Status::error(Code::kResource, "raise NVSHMEM_EFA_SOFT_RAILS or lower NVSHMEM_EFA_RAILS",
                             "%d rails were asked for, but there are %zu software devices (of %d; filter \"%s\")",
                             options.rails_max, chosen.size(), rails, options.device_filter.c_str());
    std::shared_ptr<soft::Engine> engine;
    EFA_TRY(soft::Engine::open(engine_options, &engine));
    nics->clear();
    for (int rail : chosen) nics->push_back(engine->make_nic(rail));
    return Status();
}

}  // namespace nvshmem_efa
