// SPDX-License-Identifier: Apache-2.0
#include "proxy.h"

#include <utility>

namespace nvshmem_efa::pe {
namespace {

constexpr size_t kQueueMax = 1024;  // requests under way; a caller waits for room, as on a GPU

uint64_t load_acquire(uint64_t& word) { return std::atomic_ref<uint64_t>(word).load(std::memory_order_acquire); }

uint64_t keep_bytes(uint64_t value, int bytes) {
    return bytes >= 8 ? value : value & ((uint64_t{1} << (8 * bytes)) - 1);
}

}  // namespace

Proxy::Proxy(LaneCalls calls, PluginPort& port, ProxyOptions options)
    : calls_(std::move(calls)), port_(port), options_(std::move(options)) {
    for (size_t i = 0; i < options_.n_slots; ++i) free_slots_.push_back(options_.slots + i);
    thread_ = std::thread([this] { run(); });
}

Proxy::~Proxy() { stop(); }

void Proxy::stop() {
    stopping_.store(true, std::memory_order_release);  // pairs with the load in run()
    if (thread_.joinable()) thread_.join();
}

void Proxy::run() {
    std::vector<Request> batch;
    uint32_t idle_turns = 0;
    for (;;) {
        const bool is_last =
            stopping_.load(std::memory_order_acquire);  // pairs with stop(): its queue is visible below
        {
            std::lock_guard guard(lock_);
            std::swap(batch, queue_);
        }
        Status status;
        for (const Request& request : batch) {
            if (!(status = handle(request)).ok()) break;
            handled_.fetch_add(1, std::memory_order_release);  // pairs with wait_handled()
        }
        if (status.ok()) status = port_.progress();
        if (!status.ok()) {
            options_.on_failure(status);
            failed_.store(true, std::memory_order_release);  // pairs with push() and wait()
            return;
        }
        if (is_last && batch.empty()) return;
        idle_turns = batch.empty() ? idle_turns + 1 : 0;
        batch.clear();
        if (idle_turns) real_clock().relax(idle_turns);
    }
}

Status Proxy::handle(const Request& request) {
    const Transfer& transfer = request.transfer;
    switch (request.kind) {
        case Kind::kPut: return calls_.rma(abi::kOpPut, transfer, true);
        case Kind::kGet: return calls_.rma(abi::kOpGet, transfer, true);
        case Kind::kP: return calls_.p(transfer.pe, transfer.symmetric, request.amo.value, request.amo.bytes);
        case Kind::kG: {
            EFA_TRY(calls_.g(transfer.pe, transfer.symmetric, request.slot, request.amo.bytes));
            EFA_TRY(calls_.quiet(transfer.pe));
            std::atomic_ref<uint64_t>(request.slot->flag)
                .store(request.tag, std::memory_order_release);  // pairs with fetch()
            return Status();
        }
        case Kind::kAmo: return calls_.amo(transfer.pe, request.word, request.amo, request.slot, request.tag);
        case Kind::kPutSignal: return calls_.put_signal(transfer, request.word, request.amo);
        case Kind::kFence: return calls_.fence();
        case Kind::kQuiet: return calls_.quiet();
    }
    return Status::error(Code::kInternal, nullptr, "the proxy took a request of kind %d",
                         static_cast<int>(request.kind));
}

Status Proxy::wait(const std::function<bool()>& is_done, const char* what) {
    Deadline deadline(real_clock(), options_.timeout_ms);
    for (uint32_t turn = 0; !is_done(); ++turn) {
        if (failed_.load(std::memory_order_acquire) || (turn & 63u) == 63u) EFA_TRY(options_.check_job());
        if (deadline.passed())
            return Status::error(Code::kTimeout, "see the logs of the other PEs",
                                 "%s through the proxy took longer than %llu ms", what,
                                 static_cast<unsigned long long>(options_.timeout_ms));
        deadline.relax();
    }
    return Status();
}

Status Proxy::push(const Request& request, uint64_t* number) {
    if (failed_.load(std::memory_order_acquire)) return options_.check_job();
    bool is_queued = false;
    const auto try_push = [&] {
        std::lock_guard guard(lock_);
        if (pushed_ - handled_.load(std::memory_order_relaxed) >= kQueueMax) return false;
        queue_.push_back(request);
        ++pushed_;
        if (number) *number = pushed_;
        return is_queued = true;
    };
    return wait(try_push, "waiting for room in the proxy's queue");
}

Status Proxy::wait_handled(uint64_t number, const char* what) {
    return wait([&] { return handled_.load(std::memory_order_acquire) >= number; }, what);  // pairs with run()
}

Status Proxy::take_slot(FetchSlot** slot) {
    const auto try_take = [&] {
        std::lock_guard guard(lock_);
        if (free_slots_.empty()) return false;
        *slot = free_slots_.back();
        free_slots_.pop_back();
        return true;
    };
    return wait(try_take, "waiting for a place for a fetched value");
}

void Proxy::return_slot(FetchSlot* slot) {
    std::lock_guard guard(lock_);
    free_slots_.push_back(slot);
}

Status Proxy::fetch(Request& request, uint64_t* value, const char* what) {
    EFA_TRY(take_slot(&request.slot));
    // Tags are never used twice, so that the flag needs no reset, which a late duplicate of the last answer could undo.
    request.tag = next_tag_.fetch_add(1, std::memory_order_relaxed);
    EFA_TRY(push(request));
    FetchSlot& slot = *request.slot;
    // Acquire: pairs with the writer of the flag, the plugin or handle(). On failure the slot is not used again.
    EFA_TRY(wait([&] { return load_acquire(slot.flag) == request.tag; }, what));
    *value = keep_bytes(std::atomic_ref<uint64_t>(slot.value).load(std::memory_order_relaxed), request.amo.bytes);
    return_slot(request.slot);
    return Status();
}

Status Proxy::put_nbi(const Transfer& transfer) {
    Request request;
    request.transfer = transfer;
    return push(request);
}

Status Proxy::get_nbi(const Transfer& transfer) {
    Request request;
    request.kind = Kind::kGet;
    request.transfer = transfer;
    return push(request);
}

Status Proxy::p(int pe, void* symmetric, uint64_t value, int bytes) {
    Request request;
    request.kind = Kind::kP;
    request.transfer = {pe, symmetric, nullptr, static_cast<size_t>(bytes)};
    request.amo.value = value;
    request.amo.bytes = bytes;
    return push(request);
}

Status Proxy::g(int pe, const void* symmetric, int bytes, uint64_t* value) {
    Request request;
    request.kind = Kind::kG;
    request.transfer = {pe, const_cast<void*>(symmetric), nullptr, static_cast<size_t>(bytes)};
    request.amo.bytes = bytes;
    return fetch(request, value, "g");
}

Status Proxy::amo(int pe, void* symmetric, const Amo& amo, uint64_t* fetched) {
    Request request;
    request.kind = Kind::kAmo;
    request.transfer.pe = pe;
    request.word = symmetric;
    request.amo = amo;
    if (!amo.is_fetching()) return push(request);
    uint64_t ignored;
    return fetch(request, fetched ? fetched : &ignored, "a fetching atomic");
}

Status Proxy::put_signal(const Transfer& transfer, void* signal_word, const Amo& signal) {
    Request request;
    request.kind = Kind::kPutSignal;
    request.transfer = transfer;
    request.word = signal_word;
    request.amo = signal;
    return push(request);
}

Status Proxy::fence() {
    Request request;
    request.kind = Kind::kFence;
    uint64_t number = 0;
    EFA_TRY(push(request, &number));
    return wait_handled(number, "fence");
}

Status Proxy::quiet() {
    Request request;
    request.kind = Kind::kQuiet;
    uint64_t number = 0;
    EFA_TRY(push(request, &number));
    return wait_handled(number, "quiet");
}

}  // namespace nvshmem_efa::pe
