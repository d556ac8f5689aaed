// SPDX-License-Identifier: Apache-2.0
// The host's side of what the GPU posts itself: fills the DeviceState, tells it of new memory, waits for the posted work
// (quiet), and turns the posters' error records into named errors. Posters are the GPU, or CPU threads in tests, demos
// and guests. docs/gpu-posts.md.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "connect.h"
#include "gpu_mapping.h"
#include "nvshmem_efa/device_state.h"
#include "poster_memory.h"

namespace nvshmem_efa {

class GpuLane {
   public:
    // After the job is connected; takes the rings, acks and replies of `queues`. Where a GPU posts, on a thread where it is
    // current. Allocates and pins.
    static Status create(const Job& job, const Knobs& knobs, ConnectedQueues& queues, const std::vector<Nic*>& nics,
                         std::unique_ptr<GpuLane>* lane);
    // Pre: nobody posts any more.
    ~GpuLane();
    GpuLane(const GpuLane&) = delete;
    GpuLane& operator=(const GpuLane&) = delete;

    const DeviceState* state_at_posters() const { return memory_->at<const DeviceState>(layout_.state); }
    MemoryKind posters() const { return memory_->kind(); }
    std::string describe() const;  // "GPU posts to 2 soft queues a rail"

    // A chunk of the symmetric heap as all PEs registered it; bytes == 0 where a PE has none. Kernels may run.
    Status add_chunk(const std::vector<MemHandle>& handles);
    Status add_local(const MemHandle& handle);  // a buffer of this PE outside the heap
    void forget(const MemHandle& handle);       // either; what is not known is ignored

    // The first failure of anything posted so far, as far as anybody has noticed; sticky. A few loads when there is none.
    Status check() const { return has_failed() ? failure() : Status(); }
    // Waits until all that was posted before is complete, and all signals and atomics to `pe` are applied there. Posters
    // that go on are made to pause for a moment. A failure, noticed before or found here, is its error. Any thread.
    Status drain(int pe);
    // Completed so far, where the host sees the counter; exact if it, quiet or fence is called once in 2^31 requests.
    uint64_t work_requests();

   private:
    static constexpr uint32_t kChunksMax = 256, kLocalsMax = 256;
    struct Queue {
        std::unique_ptr<GpuRing> ring;
        GpuQueue host;           // the host's own look at it, for the status of a counted error
        GpuQueueState shadow{};  // of that look
        GpuQueueError found{};   // its record
        uint64_t counted = 0;    // completions, as of the last look: the device's counter wraps at 2^31
        int holds = 0;           // drains that ask its posters to pause
    };
    // Offsets in `memory_`. What the host reads back comes first.
    struct Layout {
        size_t queue_states, peers, shared, live_end;
        size_t state, queues, targets, reply_busy, chunks, lkeys, remote_bases, rkeys, locals, local_lkeys, notes;
        size_t arrival_targets, arrival_biases, arrival_counts, arrival_states, arrival_queues, end;
    };
    struct Found {
        const GpuQueueError* record = nullptr;
        size_t index = 0;  // of its queue; the number of queues for a wait of the device API
    };

    GpuLane(const Job& job, std::vector<Nic*> nics) : job_(job), nics_(std::move(nics)) {}
    Status open(const Knobs& knobs, ConnectedQueues& queues);
    void lay_out();
    Status map_host_memory(ConnectedQueues& queues);
    Status describe_queue(size_t index, GpuQueue* queue, GpuQueueState* state);
    Status fill_state(const Knobs& knobs, std::vector<uint8_t>* image);
    void fill_arrivals(uint8_t* image, DeviceState* state) const;
    Status read_counters(size_t index, uint32_t* completed, uint32_t* errors);
    uint64_t count_requests();  // pre: lock held
    bool has_failed() const;
    Status failure() const;
    Status name_failure(const Found& found) const;
    Status name_completion(const GpuQueueError& record, size_t index) const;
    Status name_wait(const GpuQueueError& record, size_t index) const;
    std::string name_queue(size_t index) const;
    int peer_of(const GpuQueueError& record, size_t index) const;
    Status find_counted_error(size_t index, uint32_t completed, uint32_t errors);
    Status change_holds(size_t queue, int by);
    // What asks the posters of some queues to pause, until it ends.
    class Hold {
       public:
        explicit Hold(GpuLane& lane) : lane_(lane), is_held_(lane.queues_.size()) {}
        ~Hold();
        Hold(const Hold&) = delete;
        Hold& operator=(const Hold&) = delete;
        Status set(size_t queue);
        void release(size_t queue);

       private:
        GpuLane& lane_;
        std::vector<bool> is_held_;
    };
    struct Drain {  // one drain() under way; vectors by queue
        explicit Drain(GpuLane& lane) : is_settled(lane.queues_.size()), looks_late(lane.queues_.size()), hold(lane) {}
        std::vector<uint32_t> goals;   // heads when it began; empty: not read yet
        std::vector<uint32_t> heads;   // as last read
        std::vector<bool> is_settled;  // seen with nothing in flight
        std::vector<uint32_t> looks_late;
        uint32_t next_seq = 0;
        Hold hold;
    };
    Status read_heads(int pe, Drain* drain);
    Status look_at_queues(int pe, Drain* drain);
    Status is_reached(int pe, Drain* drain, bool* reached);
    Status name_timeout(const Drain& drain, int pe);

    const Job& job_;
    std::vector<Nic*> nics_;
    std::vector<Queue> queues_;
    size_t queues_per_rail_ = 0;
    uint64_t wait_ticks_ = 0;
    Layout layout_{};
    std::unique_ptr<PosterMemory> memory_;
    std::unique_ptr<ArrivalQueues> arrivals_;  // null: no counted puts
    const uint64_t* acks_ = nullptr;    // as the host sees them
    ReplySlot* replies_ = nullptr;
    GpuQueueError* errors_ = nullptr;   // pinned
    size_t errors_bytes_ = 0;
    cuda::GpuMapping errors_map_, words_map_;
    mutable std::mutex mutex_;  // memory_, the tables, the host's looks
    uint64_t heap_base_ = 0;
    struct Entry {
        uint64_t id = 0;  // MemHandle::id; 0: taken back
        uint64_t base = 0;
    };
    std::vector<Entry> chunks_, locals_;
    mutable std::atomic<bool> is_failed_{false};  // failure_ stands
    mutable Code failure_code_ = Code::kOk;
    mutable std::string failure_;
};

}  // namespace nvshmem_efa
