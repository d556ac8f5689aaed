// SPDX-License-Identifier: Apache-2.0
#include "pe.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "clock.h"
#include "log.h"

namespace nvshmem_efa::pe {
namespace {

constexpr int kBootstrapTurns = 30;  // of 10 ms

bool may_follow_from_a_peer(Code code) {
    return code == Code::kPeer || code == Code::kTimeout || code == Code::kDevice || code == Code::kInternal;
}

BootstrapSocket& socket_of(abi::BootstrapHandle* handle) { return *static_cast<BootstrapSocket*>(handle->comm_state); }

// The plugin knows only that it failed; our socket keeps the reason, which Pe::check() returns.
int boot_allgather(const void* send, void* recv, int bytes, abi::BootstrapHandle* handle) {
    return bytes >= 0 && socket_of(handle).allgather(send, recv, static_cast<size_t>(bytes)).ok() ? 0
                                                                                                  : abi::kHostInternal;
}
int boot_alltoall(const void* send, void* recv, int bytes, abi::BootstrapHandle* handle) {
    return bytes >= 0 && socket_of(handle).alltoall(send, recv, static_cast<size_t>(bytes)).ok() ? 0
                                                                                                 : abi::kHostInternal;
}
int boot_barrier(abi::BootstrapHandle* handle) { return socket_of(handle).barrier().ok() ? 0 : abi::kHostInternal; }
void boot_global_exit(int status) {
    std::fprintf(stderr, "the plugin asked for the end of the job, status %d\n", status);
    std::_Exit(5);
}
int boot_nothing(abi::BootstrapHandle*) { return 0; }
int boot_show_info(abi::BootstrapHandle*, int) { return 0; }

abi::BootstrapHandle make_boot_handle(BootstrapSocket& socket) {
    abi::BootstrapHandle handle{};
    handle.pg_rank = handle.mype_node = socket.pe();
    handle.pg_size = handle.npes_node = socket.n_pes();
    handle.allgather = boot_allgather;
    handle.alltoall = boot_alltoall;
    handle.barrier = boot_barrier;
    handle.global_exit = boot_global_exit;
    handle.finalize = boot_nothing;
    handle.show_info = boot_show_info;
    handle.comm_state = &socket;
    return handle;
}

uint64_t load_acquire(const uint64_t* word) {
    return std::atomic_ref<uint64_t>(*const_cast<uint64_t*>(word)).load(std::memory_order_acquire);
}

bool holds(uint64_t seen, Compare compare, uint64_t value) {
    switch (compare) {
        case Compare::kEqual: return seen == value;
        case Compare::kNotEqual: return seen != value;
        case Compare::kAtLeast: return seen >= value;
        case Compare::kGreater: return seen > value;
    }
    return false;
}

}  // namespace

Status Pe::create(const PeOptions& options, std::unique_ptr<Pe>* pe) {
    std::unique_ptr<Pe> made(new Pe(options));
    if (Status status = made->start(); !status.ok()) return made->finish(std::move(status));
    *pe = std::move(made);
    return Status();
}

// The order of NVSHMEM's init: reference section 4.
Status Pe::start() {
    BootstrapOptions bootstrap;
    bootstrap.job = options_.job;
    bootstrap.pe = options_.pe;
    bootstrap.n_pes = options_.n_pes;
    bootstrap.abi = static_cast<uint32_t>(options_.abi);
    bootstrap.timeout_ms = options_.timeout_ms;
    EFA_TRY(BootstrapSocket::join(bootstrap, &bootstrap_));
    log_set_pe(options_.pe);
    boot_handle_ = make_boot_handle(*bootstrap_);
    EFA_TRY(SymmetricHeap::create(options_.heap, &heap_));
    EFA_TRY(start_plugin());
    EFA_TRY(bootstrap_->barrier());
    EFA_TRY(heap_->exchange_bases(*bootstrap_));
    EFA_TRY(heap_->grow(*port_, *bootstrap_, options_.heap_bytes));
    host_ = std::make_unique<LaneCalls>(*port_, *heap_, Caller::kHost, options_.n_pes);
    EFA_TRY(start_proxy());
    return barrier_all();
}

Status Pe::start_plugin() {
    EFA_TRY(PluginPort::load(options_.plugin_path, options_.abi, &port_));
    caps_.assign(static_cast<size_t>(options_.n_pes), 0);
    HostFields fields;
    fields.boot_handle = &boot_handle_;
    fields.heap_base = heap_->base();
    fields.cap = caps_.data();
    fields.my_pe = options_.pe;
    fields.n_pes = options_.n_pes;
    port_->share(fields);
    abi::PeInfo mine{};
    mine.pe = options_.pe;
    mine.host_hash = static_cast<uint64_t>(gethostid());
    std::vector<abi::PeInfo> peers(caps_.size());
    EFA_TRY(bootstrap_->allgather(&mine, peers.data(), sizeof mine));
    for (abi::PeInfo& peer : peers) {
        int& access = caps_[static_cast<size_t>(peer.pe)];
        EFA_TRY(port_->can_reach_peer(&peer, &access));
        if (access == 0)
            return Status::error(Code::kUnsupported, "see the plugin's log",
                                 "the plugin says that PE %d cannot be reached", peer.pe);
    }
    if (port_->n_devices() < 1)
        return Status::error(Code::kMissing, "set NVSHMEM_EFA_MODE=soft where there is no device",
                             "%s offers no device", port_->path().c_str());
    std::vector<int> devices;
    for (int i = 0; i < port_->n_devices(); ++i) devices.push_back(i);
    return port_->connect_endpoints(devices);
}

Status Pe::start_proxy() {
    void* block = nullptr;
    EFA_TRY(heap_->allocate(*port_, *bootstrap_, sizeof(Internal), &block));
    internal_ = static_cast<Internal*>(block);
    ProxyOptions proxy;
    proxy.slots = internal_->proxy_slots;
    proxy.n_slots = kProxySlots;
    proxy.timeout_ms = options_.timeout_ms;
    proxy.on_failure = [this](const Status& why) { fail(why); };
    proxy.check_job = [this] { return check(); };
    proxy_ =
        std::make_unique<Proxy>(LaneCalls(*port_, *heap_, Caller::kProxy, options_.n_pes), *port_, std::move(proxy));
    return Status();
}

Pe::~Pe() {
    if (is_finalized_) return;
    fail(Status::error(Code::kPeer, nullptr, "PE %d ended without finalize", options_.pe));
    if (proxy_) proxy_->stop();
    proxy_.reset();
    if (port_ && heap_) heap_->release_handles(*port_);
    port_.reset();  // finalizes the plugin
}

Status Pe::finalize() {
    EFA_TRY(barrier_all());
    proxy_->stop();
    EFA_TRY(check());
    EFA_TRY(finish(bootstrap_->barrier()));
    stats_at_end_ = port_->stats_json();
    heap_->release_handles(*port_);
    Status status = finish(port_->finalize());
    proxy_.reset();
    host_.reset();
    port_.reset();
    is_finalized_ = true;
    // Nobody takes the other's devices away under its feet: all have finalized before anyone leaves.
    if (status.ok()) status = finish(bootstrap_->barrier());
    bootstrap_->leave();
    heap_.reset();
    return status;
}

Status Pe::check() {
    if (!is_failed()) {
        Status peers = bootstrap_->check_peers();
        if (peers.ok()) return peers;
        fail(peers);
    }
    return first_failure();
}

Status Pe::first_failure() {
    std::lock_guard guard(failure_lock_);
    return Status::error(failure_code_, nullptr, "%s", failure_.c_str());
}

void Pe::fail(const Status& why) {
    {
        std::lock_guard guard(failure_lock_);
        if (is_failed()) return;
        failure_code_ = why.code();
        failure_ = why.message();
        // What the plugin saw may only follow from the death of a peer: the bootstrap knows, a moment later perhaps.
        if (bootstrap_ && may_follow_from_a_peer(why.code())) {
            Status peers = bootstrap_->check_peers();
            for (int turn = 0; peers.ok() && turn < kBootstrapTurns; ++turn) {
                std::this_thread::sleep_for(std::chrono::milliseconds(10));
                peers = bootstrap_->check_peers();
            }
            if (!peers.ok() && failure_ != peers.message()) {
                failure_ = std::string(peers.message()) + " (seen here as: " + failure_ + ")";
                failure_code_ = peers.code();
            }
        }
        failed_.store(true, std::memory_order_release);  // pairs with is_failed()
    }
    if (bootstrap_) bootstrap_->abort(why);
}

Status Pe::finish(Status status) {
    if (status.ok()) return status;
    fail(status);
    return first_failure();
}

Status Pe::malloc(size_t bytes, void** block) { return finish(heap_->allocate(*port_, *bootstrap_, bytes, block)); }

Status Pe::free(void* block) {
    EFA_TRY(heap_->release(block));  // the caller's mistake, and harmless to the job
    return finish(bootstrap_->barrier());
}

Status Pe::grow(size_t bytes) { return finish(heap_->grow(*port_, *bootstrap_, bytes)); }
Status Pe::register_buffer(void* buffer, size_t bytes) { return heap_->register_buffer(*port_, buffer, bytes); }
Status Pe::unregister_buffer(void* buffer) { return heap_->unregister_buffer(*port_, buffer); }

Status Pe::wait_until(const uint64_t* word, Compare compare, uint64_t value, int from) {
    Deadline deadline(real_clock(), options_.timeout_ms);
    for (uint32_t turn = 0; !holds(load_acquire(word), compare, value); ++turn) {  // pairs with the agent's release
        if ((turn & 63u) == 63u) EFA_TRY(check());
        if (deadline.passed())
            return finish(Status::error(Code::kTimeout, "see PE's own log, or raise --timeout-ms",
                                        "PE %d waited %llu ms for PE %d to signal: the word holds %llu, wanted %llu",
                                        options_.pe, static_cast<unsigned long long>(options_.timeout_ms), from,
                                        static_cast<unsigned long long>(load_acquire(word)),
                                        static_cast<unsigned long long>(value)));
        deadline.relax();
    }
    return Status();
}

Status Pe::barrier_all() {
    EFA_TRY(quiet());
    EFA_TRY(proxy_->quiet());
    return barrier_rounds();
}

// Dissemination: in round r everyone signals the PE 2^r further on, so that after log2(n) rounds all know of all.
// A word has one writer, and epochs only grow: no word is ever reset.
Status Pe::barrier_rounds() {
    ++barrier_epoch_;
    size_t round = 0;
    for (int distance = 1; distance < options_.n_pes; distance *= 2, ++round) {
        Amo signal;
        signal.opcode = abi::kAmoSignalSet;
        signal.value = barrier_epoch_;
        EFA_TRY(amo((options_.pe + distance) % options_.n_pes, &internal_->barrier[round], signal));
        const int from = (options_.pe + options_.n_pes - distance) % options_.n_pes;
        EFA_TRY(
            wait_until(&internal_->barrier[round], Compare::kAtLeast, barrier_epoch_, from).with_context("barrier"));
    }
    return Status();
}

}  // namespace nvshmem_efa::pe
