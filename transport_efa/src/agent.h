// SPDX-License-Identifier: Apache-2.0
// The signal agent: receives records and counts data arrivals, applies signals and atomics in order, acknowledges, and
// delivers the replies to this PE's own fetching atomics. The one serialiser of every word of this PE that signals and
// atomics touch. Runs on its own thread, or turn by turn under the virtual clock; never touches payload.
#pragma once

#include <atomic>
#include <string>
#include <unordered_map>
#include <vector>

#include "agent_record.h"
#include "endpoint.h"
#include "fetch_board.h"
#include "job.h"
#include "memory_table.h"

namespace nvshmem_efa {

class Agent {
   public:
    Agent(std::vector<Endpoint> endpoints) : endpoints_(std::move(endpoints)) {}
    ~Agent() {
        for (Endpoint& endpoint : endpoints_) endpoint.close();
    }
    const std::vector<Endpoint>& endpoints() const { return endpoints_; }

    // After all address handles are there. `cuda` may be null on a machine without.
    void attach(const Job& job, const MemoryTable& memory, FetchBoard& board, std::unique_ptr<WordEngine> cuda);
    // One turn. False when there was nothing to do. One thread at a time.
    bool poll();
    const char* engine_name() const { return cuda_ ? cuda_->name() : cpu_->name(); }
    uint64_t records() const { return records_.load(std::memory_order_relaxed); }
    uint64_t work_requests() const { return work_requests_.load(std::memory_order_relaxed); }
    uint64_t doorbells() const { return doorbells_.load(std::memory_order_relaxed); }
    uint64_t immediates() const { return immediates_.load(std::memory_order_relaxed); }

   private:
    struct Slot {
        AgentRecord record;
        uint16_t arrived = 0;  // data writes with this number
        bool has_record = false;
        bool reply_in_flight = false;
    };
    // One lane of one PE that sends to us.
    struct Source {
        int pe = 0;
        int lane = 0;
        uint32_t next = 0;    // the record to apply next; all before are applied
        bool ack_in_flight = false;
        bool refused = false;
        bool gone = false;     // an ack or reply failed: nothing more is sent there
        bool touched = false;  // on the ready list
        bool owes_ack = false;
        std::vector<Slot> slots;
    };
    struct Applied {
        uint32_t source;
        uint32_t seq;
        MemoryKind kind;
        bool fetch;
        bool refused;
    };

    void count_posted();
    bool poll_receives();
    void on_receive(size_t rail, const RxCqeEx& cqe);
    void on_record(Source& source, const AgentRecord& record);
    void touch(Source& source);
    bool apply_ready();
    void collect(Source& source, size_t limit);
    bool record_to_request(const Source& source, const AgentRecord& record, WordRequest* request, MemoryKind* kind);
    bool apply_batch();
    void finish_batch();
    void send_reply(Source& source, uint32_t seq, uint64_t value);
    bool send_acks();
    bool poll_completions();
    bool deliver_fetches();
    bool deliver(const PendingFetch& fetch, uint64_t value);
    void fail(const std::string& why);
    Endpoint& endpoint_for(uint32_t seq) { return endpoints_[seq % job_->n_rails]; }

    std::vector<Endpoint> endpoints_;  // one a rail
    const Job* job_ = nullptr;
    const MemoryTable* memory_ = nullptr;
    FetchBoard* board_ = nullptr;
    std::unique_ptr<WordEngine> cpu_ = make_cpu_words();
    std::unique_ptr<WordEngine> cuda_;
    std::vector<Source> sources_;  // [pe * kLanesMax + lane]
    std::vector<std::unordered_map<uint32_t, uint32_t>> source_of_;  // per rail: (ah << 16 | qp number) -> source
    std::vector<uint32_t> ready_;
    std::vector<uint32_t> owe_ack_;
    std::vector<WordRequest> requests_;
    std::vector<Applied> applied_;
    std::vector<PendingFetch> fetches_;
    std::atomic<uint64_t> records_{0}, immediates_{0}, work_requests_{0}, doorbells_{0};
};

}  // namespace nvshmem_efa
