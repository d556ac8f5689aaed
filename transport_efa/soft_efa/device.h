// SPDX-License-Identifier: Apache-2.0
// One software EFA device: a pure state machine. It starts no thread and reads no clock; whoever holds it calls step()
// and receive() with the time, one call at a time. Its rings, keys, statuses and limits are those of the hardware.
//
// A message's way, file by file:
//   send_path.cpp     doorbell, descriptor bytes, the initiator's checks
//   emit.cpp          packets to peers, when the wire has room
//   receive_path.cpp  arrival in seeded disorder, the target's checks
//   place.cpp         payload into memory
//   complete.cpp      acknowledgements, completions, counters
// Control calls: device.cpp (memory, address handles, the step itself), queues.cpp (CQs, QPs), counters.cpp.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "memory_port.h"
#include "pool.h"
#include "prng.h"
#include "profile.h"
#include "stats.h"
#include "tables.h"
#include "wire.h"

namespace nvshmem_efa::soft {

// What the network does to traffic. All of it is drawn from the device's seed.
struct Faults {
    uint64_t reorder_ns = 0;  // each packet arrives up to this much later than it could
    uint32_t duplicate_ppm = 0;
    uint32_t delay_ppm = 0;
    uint32_t rnr_ppm = 0;
    uint64_t far_delay_ns = 0;  // 0: 50 windows and 20 us
    bool tear_small = true;     // small payloads may land in two parts (never within 8 aligned bytes)
    uint64_t dead_after_packets = UINT64_MAX;  // then the device neither sends nor answers
};

struct DeviceOptions {
    Profile profile;
    Faults faults;
    bool use_timing = false;  // virtual clock: the profile's times; else as fast as it goes
    bool check_batches = false;  // look for slots written beyond max_batch: only where programs run on this thread
    uint64_t seed = 1;
    Gid gid;
    MemoryPort* memory = nullptr;
    Wire* wire = nullptr;
    uint32_t payload_max = 128u << 10;           // longest payload of one packet
    uint64_t unresponsive_ns = 5'000'000'000;    // then status 13, or 10 after RNR retries
    std::string name = "soft";
};

enum class QpState : uint8_t { kFree, kReset, kReady, kError };  // kReset: neither sends nor receives

// Rings in memory of the caller's (the PCI front), who maps them before create_qp() and unmaps them after destroy_qp().
struct QpRings {
    uint8_t* sq = nullptr;
    uint32_t* sq_doorbell = nullptr;  // host words; the caller stores there what the program rang, with release
    uint8_t* rq = nullptr;
    uint32_t* rq_doorbell = nullptr;
    uint16_t domain = 0;   // protection domain
    bool is_ud = false;    // datagrams: receives begin with a 40-byte header, and a receiver that is not ready drops
};

struct CqEntries {
    uint8_t* entries = nullptr;  // zeroed by the caller
    uint32_t entry_bytes = 0;    // 16 or 32
    uint32_t depth = 0;          // a power of two
};

inline constexpr uint8_t kRnrRetryForever = 7;

struct QpSlot {
    QpState state = QpState::kFree;
    uint8_t generation = 0;
    uint16_t qp_num = 0;
    QpAttr attr;
    uint8_t* sq = nullptr;
    uint32_t* sq_doorbell = nullptr;
    uint32_t slot_bytes = 0;
    uint32_t depth_log2 = 0;
    uint32_t max_batch = 0;
    uint32_t parsed = 0;     // slots taken from the send ring
    uint32_t completed = 0;  // of those
    uint8_t* rq = nullptr;
    uint32_t* rq_doorbell = nullptr;
    uint32_t received = 0;  // receive descriptors taken
    bool has_callers_rings = false;
    uint16_t domain = 0;
    bool is_ud = false;
    uint8_t rnr_retry = kRnrRetryForever;
    uint32_t counters[6] = {kNone, kNone, kNone, kNone, kNone, kNone};  // by bit of CounterOp
    std::string diagnosis;
};

// A work request, from its doorbell to its completion.
struct Op {
    uint32_t next = kNone;
    uint32_t generation = 0;  // with the pool number, the message number on the wire
    bool is_live = false;  // false while a list still holds it: whoever takes it from there frees it
    bool has_imm = false;
    bool is_inline = false;
    bool by_reference = false;
    SendOpcode opcode = SendOpcode::kSend;
    uint8_t attempt = 0;
    uint8_t shuffle = 0;
    uint16_t qp = 0;
    uint16_t ahn = 0;
    uint16_t dest_qp_num = 0;
    uint32_t qkey = 0;
    uint32_t immediate = 0;
    uint32_t rkey = 0;
    uint64_t req_id = 0;
    uint64_t remote_addr = 0;
    uint64_t bytes = 0;
    Sge sges[kSendSgesMax] = {};
    uint8_t n_sges = 0;
    uint8_t inline_bytes[kInlineLargeMax] = {};
    uint32_t segment_bytes = 0;
    uint32_t n_segments = 0;
    uint32_t next_segment = 0;
    uint64_t read_placed = 0;
    bool is_in_network = false;  // on the list of those that wait for an answer
    uint32_t wait_prev = kNone, wait_next = kNone;
    uint64_t started_ns = 0;
    uint64_t deadline_ns = 0;
};

// Memory that was checked.
struct Piece {
    MemoryAddr from;
    uint32_t bytes = 0;
};

// A packet that is ready to go, or that waits for its payload to come out of GPU memory.
struct Outgoing {
    uint32_t next = kNone;
    uint32_t peer = 0;
    PacketHeader header;
    uint8_t* bounce = nullptr;
    MemoryPort::Ticket ticket = 0;
};

// A range of our memory that a peer reads, or that it asks for again as bytes (then it may belong to a write of ours).
struct Answer {
    uint32_t next = kNone;
    PacketHeader header;       // of the packets to send, but for the segment
    uint64_t at = 0, end = 0;  // offsets in the message
    uint64_t addr = 0;         // of the message's first byte, here
    uint32_t lkey = 0;
    uint32_t segment_bytes = 0;
    bool by_reference = false;
    bool is_read = true;
};

inline constexpr uint32_t kArrivalInline = 128;

// A packet that has arrived but is not yet handled, or whose payload is being placed.
struct Arrival {
    uint32_t next = kNone;
    PacketHeader header;
    uint32_t peer = 0;
    uint64_t order = 0;  // as the peer's packets came
    const uint8_t* payload = nullptr;
    uint8_t* buffer = nullptr;
    uint8_t small[kArrivalInline];
    uint32_t torn_left = 0;     // 8-byte blocks still to place
    bool will_repeat = false;   // a second placement follows
    bool is_repeat = false;     // this is the second placement
    uint32_t message = kNone;   // its Incoming, when it has one
    MemoryAddr target;
    uint32_t target_bytes = UINT32_MAX;  // the rest goes to `more`
    MemoryAddr more;
    uint32_t qp = 0;            // the local queue pair
    uint32_t recv_index = 0;    // SEND: the (first) descriptor taken
    MemoryPort::Ticket ticket = 0;
};

// A message of several segments on its way in.
struct Incoming {
    uint32_t next = kNone;
    uint32_t peer = 0;
    uint64_t message = 0;
    uint64_t placed = 0;
    uint32_t repeats_due = 0;
    bool is_delivered = false;
    CqeStatus status = CqeStatus::kOk;  // once delivered
    uint64_t touched_ns = 0;
};

class Device {
   public:
    explicit Device(const DeviceOptions& options);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    // ---- control (what the driver does) ----
    const NicCaps& caps() const { return options_.profile.caps; }
    const Gid& gid() const { return options_.gid; }
    const std::string& name() const { return options_.name; }
    // The table's part of registration; the MemoryPort's part is the caller's (it may take long).
    Status register_memory(const MemoryAttr& attr, MemoryRegion* region);
    // Memory that programs address from attr.addr on, that lies at `here` in this process, and of one protection domain.
    Status register_memory(const MemoryAttr& attr, uint8_t* here, MemoryRegion* region, uint16_t domain = 0);
    Status deregister_memory(uint32_t lkey);
    Status create_cq(const CqAttr& attr, Cq* cq);
    Status create_cq(const CqEntries& ring, uint64_t* handle);
    Status destroy_cq(uint64_t handle);
    uint32_t cq_written(uint64_t handle) const;  // entries so far, modulo 2^32; 0 for no such queue
    Status create_qp(const QpAttr& attr, Qp* qp);
    Status create_qp(const QpAttr& attr, const QpRings& rings, Qp* qp);  // in kReset
    // To kReset: forgets what is outstanding, and the rings begin anew. To kError: completes it as flushed.
    Status set_qp_state(uint64_t handle, QpState state);
    Status set_qp_options(uint64_t handle, uint32_t qkey, uint8_t rnr_retry);  // 0..6 times, or kRnrRetryForever
    Status destroy_qp(uint64_t handle);  // completes what is outstanding as flushed
    // A handle is good for queue pairs of its protection domain; without a PCI front there is one domain.
    Status create_address_handle(const Gid& gid, AddressHandle* ah, uint16_t domain = 0);
    Status destroy_address_handle(const AddressHandle& ah, uint16_t domain = 0);
    Status create_counter(const CounterAttr& attr, uint64_t* handle);
    Status attach_counter(uint64_t qp_handle, uint64_t counter_handle, uint32_t counter_ops);
    Status destroy_counter(uint64_t handle);

    // ---- data ----
    // Does all that is due, and returns when to call again at the latest (doorbells aside): a time not after now_ns
    // when something waits for the wire or for a copy, UINT64_MAX when nothing is under way.
    uint64_t step(uint64_t now_ns);
    // The same, for who steps several devices: a later one's step may have handed a packet to this one.
    uint64_t next_event_ns() const;
    // How many more packets receive() takes now; a wire must not hand over more.
    uint32_t room();
    // `payload` is used during the call only. A packet that is not valid is dropped and counted.
    void receive(const PacketHeader& header, const void* payload, uint64_t now_ns);
    // Every copy that this device has started so far ends before this ticket is done.
    MemoryPort::Ticket last_copy() const { return last_copy_; }
    // True while a copy is under way.
    bool is_copying() const {
        return !placing_.empty() || !fetching_.empty() || (counter_ticket_ != 0 && !memory_->done(counter_ticket_));
    }

    // ---- observation and planned faults ----
    const SoftStats& stats() const { return stats_; }
    uint64_t work_done() const { return work_done_; }  // changes whenever anything happened
    uint64_t trace_hash() const { return trace_; }
    // What the program did wrong on this queue pair; empty when nothing. Kept after the queue went into error.
    std::string diagnosis(uint64_t qp_handle) const;
    const std::string& last_diagnosis() const { return last_diagnosis_; }
    QpState qp_state(uint64_t qp_handle) const;
    void set_dead_after(uint64_t packets) { options_.faults.dead_after_packets = packets; }
    void set_faults(const Faults& faults) { options_.faults = faults; }
    void set_counter_for_test(uint64_t handle, uint64_t completions);  // to see the wrap without 2^31 requests
    bool is_dead() const { return stats_.packets_received >= options_.faults.dead_after_packets; }

   private:
    // device.cpp, queues.cpp
    Status check_qp_attr(const QpAttr& attr) const;
    Status add_cq(const CqState& cq, uint64_t* handle);
    bool is_cq(uint64_t handle) const { return handle - 1 < cqs_.size() && cqs_[handle - 1].is_live; }
    Status allocate_rings(QpSlot& qp);
    void free_rings(QpSlot& qp);
    Status add_qp(const QpAttr& attr, const QpRings* rings, Qp* qp);
    void forget_ops(const QpSlot& qp);
    uint32_t qp_index(uint64_t handle) const;
    void expire(uint64_t now_ns);
    MemoryPort::Ticket start_copy(MemoryAddr to, MemoryAddr from, size_t bytes);
    void end_copies();
    // send_path.cpp
    void poll_doorbells();
    void take_slots(QpSlot& qp, uint32_t n);
    bool take_slot(QpSlot& qp, uint32_t index);
    const char* check_protocol(const QpSlot& qp, uint32_t index, const SendWqe& wqe) const;
    CqeStatus fill_op(const QpSlot& qp, const SendWqe& wqe, Op& op) const;
    CqeStatus fill_send(const QpSlot& qp, const SendWqe& wqe, Op& op) const;
    CqeStatus fill_rdma(const QpSlot& qp, const SendWqe& wqe, Op& op) const;
    CqeStatus check_sge(const QpSlot& qp, const Sge& sge, uint32_t access) const;
    void schedule_op(uint32_t index, uint64_t extra_ns);
    void fail_qp(QpSlot& qp, const std::string& why);
    void flush_qp(QpSlot& qp);
    // emit.cpp
    void list_peer(uint32_t peer);
    void emit_all();
    void emit_peer(uint32_t index);
    bool emit_op(uint32_t peer_index, uint32_t op_index, bool* is_done);
    // Each segment of GPU memory costs a copy of some 4 us, whatever its length: few of them, and one where nothing is
    // reordered anyway.
    uint32_t segments_max(bool by_reference) const {
        if (!by_reference) return options_.profile.segments_max;
        return options_.faults.reorder_ns != 0 ? 3 : 1;
    }
    void plan_segments(const Peer& peer, Op& op);
    PacketHeader op_header(const Op& op, uint32_t op_index, const Gid& to) const;
    bool emit_answer(uint32_t peer_index, Answer& answer, bool* is_done);
    bool emit_bytes(uint32_t peer_index, const PacketHeader& header, MemoryAddr from);
    bool emit_send(uint32_t peer_index, const Op& op, PacketHeader& header);
    bool emit_segment(uint32_t peer_index, Op& op, PacketHeader& header);
    bool fetch(uint32_t peer_index, const PacketHeader& header, const Piece* pieces, int n);
    bool send_packet(const PacketHeader& header, const void* payload);
    void send_control(uint32_t peer_index, const PacketHeader& header);
    bool can_refer(const Peer& peer, MemoryAddr from, size_t bytes, PeerBytes* reference) const;
    void poll_fetches();
    void wait_for_answer(uint32_t op_index);
    void stop_waiting(uint32_t op_index);
    // receive_path.cpp
    bool is_valid(const PacketHeader& header, const void* payload) const;
    uint64_t draw_delay(const PacketHeader& header);
    void handle(uint32_t index);
    CqeStatus check_write(Arrival& arrival);
    CqeStatus check_send(Arrival& arrival);
    const Region* target_of(const PacketHeader& header, const QpSlot& qp, uint32_t access) const;
    CqeStatus check_queue(const PacketHeader& header, uint32_t* qp) const;
    uint32_t find_incoming(const Arrival& arrival);
    void remove_incoming(uint32_t index);
    void retire_incoming(uint32_t index, const PacketHeader& header);
    void ask_for_payload(const Arrival& arrival);
    bool keep_payload(Arrival& arrival);
    void arrive_again(uint32_t index, uint64_t within_ns);
    void drop_arrival(uint32_t index);
    void refuse(uint32_t index, CqeStatus status);
    void handle_read_request(uint32_t index);
    void handle_read_response(uint32_t index);
    void handle_need_payload(uint32_t index);
    // place.cpp
    void place(uint32_t index);
    bool tear(uint32_t index);
    void place_blocks(const Arrival& arrival, uint32_t mask);
    void placed(uint32_t index);
    void write_placed(uint32_t index);
    void poll_placements();
    // complete.cpp, counters.cpp
    CqeStatus deliver_write(const Arrival& arrival);
    void deliver_send(const Arrival& arrival, CqeStatus status);
    RxCqeEx receive_entry(const Arrival& arrival, const QpSlot& qp, CqeStatus status) const;
    bool take_receive(QpSlot& qp, uint32_t* index);
    RecvWqe receive_slot(const QpSlot& qp, uint32_t index) const;
    Receive take_rest(QpSlot& qp, uint32_t first);
    void write_ud_header(const Arrival& arrival, MemoryAddr to);
    void acknowledge(const PacketHeader& to, uint32_t peer, CqeStatus status);
    void handle_ack(const PacketHeader& header);
    void complete_op(uint32_t index, CqeStatus status);
    void complete_slot(QpSlot& qp, uint64_t req_id, SendOpcode opcode, CqeStatus status);
    void push_cqe(QpSlot& qp, uint64_t cq_handle, const RxCqeEx& entry);
    void count(const QpSlot& qp, CounterOp op, bool is_error);
    void write_gpu_counters();
    Op* op_of_message(uint64_t message);
    void trace(uint64_t what, uint64_t a, uint64_t b) {
        trace_ = mix64(trace_ ^ (what + a * 0x9e3779b97f4a7c15u + (b ^ now_ns_) * 0xc2b2ae3d27d4eb4fu));
        ++work_done_;
    }

    DeviceOptions options_;
    MemoryPort* memory_;
    Wire* wire_;
    Prng prng_;
    SoftStats stats_;
    uint64_t now_ns_ = 0;
    uint64_t work_done_ = 0;
    uint64_t trace_ = 0;
    std::string last_diagnosis_;

    RegionTable regions_;
    PeerTable peers_;
    std::vector<CqState> cqs_;
    std::vector<CounterState> counters_;
    std::vector<uint32_t> dirty_counters_;
    std::vector<QpSlot> qps_;
    std::vector<uint16_t> live_qps_;
    uint64_t* counter_staging_ = nullptr;  // values on their way to GPU memory
    MemoryPort::Ticket counter_ticket_ = 0;

    Pool<Op> ops_;
    TimeQueue departures_;  // ops
    uint32_t waiting_head_ = kNone, waiting_tail_ = kNone;  // ops in the network, oldest first
    uint64_t link_free_ns_ = 0, engine_free_ns_ = 0;        // virtual clock
    Pool<Outgoing> outgoing_;
    Pool<Answer> answers_;
    PoolList fetching_;
    BufferPool bounce_;
    std::vector<uint32_t> busy_peers_;
    std::vector<uint32_t> busy_scratch_;
    std::vector<uint8_t> gather_;  // a SEND of two pieces
    bool is_blocked_ = false;

    Pool<Arrival> arrivals_;
    TimeQueue due_;  // arrivals
    PoolList placing_;
    BufferPool mtu_buffers_;
    BufferPool segment_buffers_;
    Pool<Incoming> incoming_;
    std::vector<uint32_t> incoming_heads_;  // chains by (peer, message)
    uint64_t next_expiry_ns_ = 0;
    bool has_copies_ = false;  // started in this step
    MemoryPort::Ticket last_copy_ = 0;
};

}  // namespace nvshmem_efa::soft
