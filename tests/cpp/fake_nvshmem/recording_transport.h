// SPDX-License-Identifier: Apache-2.0
// A Transport that writes down what it is asked, and a Nic that does nothing: what stands behind the plugin in its tests.
#pragma once

#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plugin.h"

namespace fake {

using namespace nvshmem_efa;

struct Recorded {
    std::mutex mutex;  // held by the transport only; tests read when no other thread calls
    struct Rma {
        Lane lane;
        RmaOp op;
        std::string bytes;  // the source of a put, as it was during the call
    };
    struct Amo {
        Lane lane;
        AmoOp op;
    };
    struct PutSignal {
        Lane lane;
        std::vector<RmaOp> puts;
        AmoOp signal;
    };
    struct Sync {
        std::string what;  // "fence", "quiet", "progress"
        Lane lane;
        int pe;
    };
    int created = 0, destroyed = 0, connected = 0;
    std::string mode;  // of the options that it was created with
    size_t nics = 0;
    std::vector<Rma> rmas;
    std::vector<Amo> amos;
    std::vector<PutSignal> put_signals;
    std::vector<Sync> syncs;
    std::vector<std::pair<void*, size_t>> registered;
    std::vector<uint64_t> released;                      // ids
    std::vector<std::pair<int, uint64_t>> attached;      // PE, id
    bool throws = false;                                 // the next operation throws
    Code fails = Code::kOk;                              // the next operation gives this error
    MemoryKind kind = MemoryKind::kHost;                 // what registered memory is said to be
    const char* get_data = nullptr;                      // what a get copies to its destination
};

class RecordingTransport final : public Transport {
   public:
    explicit RecordingTransport(Recorded& recorded) : r_(recorded) { ++r_.created; }
    ~RecordingTransport() override { ++r_.destroyed; }

    Status connect(const Bootstrap& bootstrap) override {
        {
            const std::lock_guard<std::mutex> lock(r_.mutex);
            ++r_.connected;
        }
        std::vector<int> all(static_cast<size_t>(bootstrap.n_pes));
        EFA_TRY(bootstrap.allgather(&bootstrap.pe, all.data(), sizeof(int)));
        return bootstrap.barrier();
    }
    Status register_memory(void* addr, size_t bytes, MemHandle* handle) override {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        EFA_TRY(outcome());
        r_.registered.emplace_back(addr, bytes);
        *handle = MemHandle();
        handle->base = reinterpret_cast<uint64_t>(addr);
        handle->bytes = bytes;
        handle->kind = static_cast<uint8_t>(r_.kind);
        handle->id = r_.registered.size();
        return Status();
    }
    Status release_memory(const MemHandle& handle) override {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        r_.released.push_back(handle.id);
        return outcome();
    }
    Status attach_peer_memory(int pe, const MemHandle& handle) override {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        r_.attached.emplace_back(pe, handle.id);
        return outcome();
    }
    Status rma(Lane lane, const RmaOp& op) override {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        EFA_TRY(outcome());
        Recorded::Rma seen{lane, op, {}};
        if (op.kind == RmaKind::kPut && op.local) seen.bytes.assign(static_cast<const char*>(op.local), op.bytes);
        if (op.kind == RmaKind::kGet && r_.get_data) std::memcpy(op.local, r_.get_data, op.bytes);
        r_.rmas.push_back(seen);
        return Status();
    }
    Status amo(Lane lane, const AmoOp& op) override {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        EFA_TRY(outcome());
        r_.amos.push_back({lane, op});
        return Status();
    }
    Status put_signal(Lane lane, const PutSignalOp& op) override {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        EFA_TRY(outcome());
        r_.put_signals.push_back({lane, {op.puts, op.puts + op.n_puts}, op.signal});
        return Status();
    }
    Status fence(Lane lane, int pe) override { return sync("fence", lane, pe); }
    Status quiet(Lane lane, int pe) override { return sync("quiet", lane, pe); }
    Status progress(Lane lane) override { return sync("progress", lane, -1); }
    bool poll_agent() override { return false; }
    TransportStats stats() const override {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        TransportStats stats;
        stats.puts = r_.rmas.size();
        return stats;
    }
    std::string describe() const override { return "recording rails"; }

   private:
    Status sync(const char* what, Lane lane, int pe) {
        const std::lock_guard<std::mutex> lock(r_.mutex);
        EFA_TRY(outcome());
        r_.syncs.push_back({what, lane, pe});
        return Status();
    }
    Status outcome() {
        if (std::exchange(r_.throws, false)) throw std::runtime_error("thrown by the fake");
        const Code code = std::exchange(r_.fails, Code::kOk);
        if (code == Code::kOk) return Status();
        return Status::error(code, "nothing", "failed by the fake");
    }
    Recorded& r_;
};

class IdleNic final : public Nic {
   public:
    explicit IdleNic(std::string name) {
        info_.name = std::move(name);
        info_.pci_path = "/sys/devices/" + info_.name;
    }
    const NicInfo& info() const override { return info_; }
    PeerAddress address() const override { return {}; }
    Status register_memory(const MemoryAttr&, MemoryRegion*) override { return Status(); }
    Status deregister_memory(const MemoryRegion&) override { return Status(); }
    Status create_cq(const CqAttr&, Cq*) override { return Status(); }
    Status destroy_cq(uint64_t) override { return Status(); }
    Status create_qp(const QpAttr&, Qp*) override { return Status(); }
    Status destroy_qp(uint64_t) override { return Status(); }
    Status create_address_handle(const PeerAddress&, AddressHandle*) override { return Status(); }
    Status destroy_address_handle(const AddressHandle&) override { return Status(); }
    Status create_counter(const CounterAttr&, uint64_t*) override { return Status(); }
    Status attach_counter(uint64_t, uint64_t, uint32_t) override { return Status(); }
    Status destroy_counter(uint64_t) override { return Status(); }

   private:
    NicInfo info_;
};

inline OpenNics opens(const char* name) {
    return [name](const OpenOptions&, std::vector<std::unique_ptr<Nic>>* nics) {
        nics->push_back(std::make_unique<IdleNic>(name));
        return Status();
    };
}

inline OpenNics opens_nothing(Code code, const char* why) {
    return [code, why](const OpenOptions&, std::vector<std::unique_ptr<Nic>>*) {
        return Status::error(code, "get one", "%s", why);
    };
}

}  // namespace fake
