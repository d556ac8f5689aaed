// SPDX-License-Identifier: Apache-2.0
#include "connect.h"

#include <sys/random.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "gpu_mapping.h"
#include "log.h"

namespace nvshmem_efa {

namespace {

constexpr uint32_t kDepthDefault = 1024;
constexpr uint32_t kWindowMin = 4, kWindowMax = 128;
constexpr uint32_t kGpuWindowMin = 2;  // less, and reply_never() would name a number that the slot does carry

uint32_t floor_power_of_two(uint32_t value) {
    uint32_t power = 1;
    while (power <= value / 2) power *= 2;
    return power;
}
uint32_t ceil_power_of_two(uint32_t value) {
    const uint32_t power = floor_power_of_two(value);
    return power == value ? power : power * 2;
}

// A depth that every rail can have.
uint32_t choose_depth(int64_t wanted, uint32_t limit) {
    const uint32_t depth = wanted ? static_cast<uint32_t>(wanted) : std::min(kDepthDefault, limit);
    return floor_power_of_two(std::max<uint32_t>(depth, 8));
}

struct Depths {
    uint32_t sq, rq, recv_cq;
};

Status choose_depths(const std::vector<std::unique_ptr<Nic>>& nics, const Knobs& knobs, Depths* depths) {
    uint32_t sq_max = kSqDepthMax, rq_max = 4096;
    for (const auto& nic : nics) {
        const NicCaps& caps = nic->info().caps;
        sq_max = std::min(sq_max, caps.inline_write ? caps.max_sq_depth / 2 : caps.max_sq_depth);
        rq_max = std::min(rq_max, caps.max_rq_depth);
    }
    if (knobs.sq_depth > sq_max || knobs.rq_depth > rq_max) {
        return Status::error(Code::kConfig, "lower NVSHMEM_EFA_SQ_DEPTH or NVSHMEM_EFA_RQ_DEPTH, or leave them at 0",
                             "queue depths %lld and %lld; these devices take up to %u and %u",
                             static_cast<long long>(knobs.sq_depth), static_cast<long long>(knobs.rq_depth), sq_max, rq_max);
    }
    depths->sq = choose_depth(knobs.sq_depth, sq_max);
    depths->rq = choose_depth(knobs.rq_depth, rq_max);
    return Status();
}

Status exchange_hello(const Bootstrap& bootstrap, const std::vector<std::unique_ptr<Nic>>& nics, const Knobs& knobs,
                      uint32_t rq_depth, std::vector<Hello>* all) {
    Hello mine;
    mine.magic = kHelloMagic;
    mine.wire_version = kWireVersion;
    snprintf(mine.version, sizeof mine.version, "%s", NVSHMEM_EFA_VERSION);
    snprintf(mine.mode, sizeof mine.mode, "%s", knobs.mode.c_str());
    mine.pe = bootstrap.pe;
    mine.n_pes = bootstrap.n_pes;
    mine.n_rails = static_cast<uint32_t>(nics.size());
    mine.rq_depth = rq_depth;
    mine.unsolicited = 1;
    mine.gpu_queues = static_cast<uint8_t>(knobs.gpu_queues);
    mine.arrival_slots = static_cast<uint8_t>(knobs.arrivals);
    mine.arrival_source = arrival_source_code(knobs);
    mine.writes_once = mine.has_counters = 1;
    for (const auto& nic : nics) {
        mine.unsolicited &= nic->info().caps.unsolicited_write_recv ? 1 : 0;
        mine.has_counters &= nic->info().caps.completion_counters ? 1 : 0;
        mine.writes_once &= nic->info().caps.data_polling_128 ? 1 : 0;
    }
    if (getrandom(mine.secret.bytes, sizeof mine.secret.bytes, 0) != static_cast<ssize_t>(sizeof mine.secret.bytes))
        return Status::error(Code::kResource, nullptr, "cannot draw the job's secret: getrandom failed");
    all->resize(static_cast<size_t>(bootstrap.n_pes));
    EFA_TRY(bootstrap.allgather(&mine, all->data(), sizeof mine).with_context("bootstrap allgather of the first message"));
    for (int pe = 0; pe < bootstrap.n_pes; ++pe) EFA_TRY(check_hello(mine, (*all)[static_cast<size_t>(pe)], pe));
    return Status();
}

Status settle_job(const std::vector<Hello>& hellos, const std::vector<std::unique_ptr<Nic>>& nics, const Knobs& knobs, Job* job) {
    uint32_t rails_min = hellos[0].n_rails, rails_max = hellos[0].n_rails, rq = hellos[0].rq_depth;
    job->count_by_immediate = job->writes_once = true;
    for (const Hello& hello : hellos) {
        rails_min = std::min(rails_min, hello.n_rails);
        rails_max = std::max(rails_max, hello.n_rails);
        rq = std::min(rq, hello.rq_depth);
        job->count_by_immediate = job->count_by_immediate && hello.unsolicited;
        job->writes_once = job->writes_once && hello.writes_once;
        if (hello.gpu_queues) job->lanes = kLanesMax;
    }
    if (rails_min != rails_max) {
        EFA_LOG(kWarn, "connect", "PEs have between %u and %u rails; all use %u; hint: set NVSHMEM_EFA_RAILS alike", rails_min,
                rails_max, rails_min);
    }
    job->n_rails = rails_min;
    // Every lane of every PE may fill its window at once: that is what the receive queue must hold.
    const uint32_t share = rq / (job->lanes * static_cast<uint32_t>(job->n_pes));
    const bool has_gpu_queues = job->lanes == kLanesMax;
    if (share < kGpuWindowMin && has_gpu_queues) {
        return Status::error(Code::kConfig, "raise NVSHMEM_EFA_RQ_DEPTH on all PEs, or set NVSHMEM_EFA_GPU_QUEUES=0",
                             "receive queues of %u slots for %u senders: what the GPU posts is not repeated when a queue is full",
                             rq, job->lanes * static_cast<uint32_t>(job->n_pes));
    }
    // A SEND that finds no receive buffer is repeated by the host's lanes, and fails a queue of the GPU.
    job->window = std::clamp(floor_power_of_two(std::max(share, 1u)), has_gpu_queues ? kGpuWindowMin : kWindowMin, kWindowMax);
    job->segment_bytes = knobs.segment_bytes ? static_cast<uint64_t>(knobs.segment_bytes) : UINT64_MAX;
    for (const auto& nic : nics) job->segment_bytes = std::min(job->segment_bytes, nic->info().caps.max_rdma_bytes);
    job->stripe_bytes = static_cast<uint64_t>(knobs.stripe_bytes);
    job->timeout_ms = static_cast<uint64_t>(knobs.timeout_ms);
    return settle_arrivals(hellos, job);
}

// Posters are the GPU that is current on this thread; without one, or where the program says so, CPU threads.
Status open_gpu_rings(const std::vector<std::unique_ptr<Nic>>& nics, const Depths& depths, const Knobs& knobs, uint32_t qkey,
                      const Job& job, ConnectedQueues* queues) {
    if (knobs.gpu_queues == 0) return Status();
    queues->posters = cuda::has_current_gpu() && !knobs.posters_are_cpu ? MemoryKind::kCuda : MemoryKind::kHost;
    const GpuRingAttr attr{depths.sq, qkey, queues->posters};
    Knobs settled = knobs;
    for (size_t rail = 0; rail < job.n_rails; ++rail) {
        for (int64_t i = 0; i < knobs.gpu_queues; ++i) {
            EFA_TRY(make_gpu_ring(settled, *nics[rail], attr, &queues->gpu.emplace_back()));
            // One kind for all: a probe that fell back to a relay is not made, and told, again for each queue.
            if (knobs.mode != "soft" && std::string_view(queues->gpu.back()->kind()) == "relay" && settled.gpu_ring == "auto")
                settled.gpu_ring = "relay";
        }
    }
    return Status();
}

Status open_arrivals(const std::vector<std::unique_ptr<Nic>>& nics, const Knobs& knobs, uint32_t qkey, const Job& job,
                     ConnectedQueues* queues) {
    if (job.arrival_slots == 0) return Status();
    const auto gpu_queues = static_cast<uint32_t>(knobs.gpu_queues);
    ArrivalAttr attr;
    attr.qkey = qkey;
    attr.posters = queues->posters;
    attr.is_soft = knobs.mode == "soft";
    attr.queues_taken = kLanes + 1 + gpu_queues;
    attr.counters_taken = std::string_view(queues->gpu.front()->kind()) == "relay" ? 0 : gpu_queues;
    return ArrivalQueues::open(job, nics, attr, &queues->arrivals);
}

Status open_queues(const std::vector<std::unique_ptr<Nic>>& nics, const Depths& depths, const Knobs& knobs, const Job& job,
                   ControlMemory& control, ConnectedQueues* queues) {
    const size_t n_pes = static_cast<size_t>(job.n_pes);
    const size_t ack_bytes = n_pes * sizeof(uint64_t), reply_bytes = n_pes * job.window * sizeof(ReplySlot);
    EndpointAttr lane;
    lane.sq_depth = depths.sq;
    if (getrandom(&lane.qkey, sizeof lane.qkey, 0) != static_cast<ssize_t>(sizeof lane.qkey))
        return Status::error(Code::kResource, nullptr, "cannot draw a qkey: getrandom failed");
    lane.qkey &= 0x7fffffffu;  // the top bit is reserved for privileged keys
    EndpointAttr agent = lane;
    agent.rq_depth = depths.rq;
    agent.recv_cq_depth = depths.recv_cq;
    const size_t per_rail = Endpoint::control_bytes(lane) * kLanes + Endpoint::control_bytes(agent);
    const int own_lanes = knobs.gpu_queues ? kLanesMax : kLanes;
    const size_t words = (ControlMemory::aligned(ack_bytes) + ControlMemory::aligned(reply_bytes)) * own_lanes;
    EFA_TRY(control.allocate(per_rail * job.n_rails + words, nics));
    for (int i = 0; i < own_lanes; ++i) {
        queues->ack_words[i] = static_cast<uint64_t*>(control.take(ack_bytes));
        queues->replies[i] = static_cast<ReplySlot*>(control.take(reply_bytes));
    }
    for (size_t rail = 0; rail < job.n_rails; ++rail) {
        lane.rail = agent.rail = rail;
        for (auto& endpoints : queues->lanes) EFA_TRY(endpoints.emplace_back().open(*nics[rail], lane, control));
        EFA_TRY(queues->agent.emplace_back().open(*nics[rail], agent, control));
        queues->agent.back().post_receives();
    }
    EFA_TRY(open_gpu_rings(nics, depths, knobs, lane.qkey, job, queues));
    return open_arrivals(nics, knobs, lane.qkey, job, queues);
}

PeCard make_card(const std::vector<std::unique_ptr<Nic>>& nics, const ControlMemory& control, const ConnectedQueues& queues,
                 const Job& job) {
    PeCard card;
    for (int lane = 0; lane < kLanesMax; ++lane) {
        card.ack_words[lane] = reinterpret_cast<uint64_t>(queues.ack_words[lane]);
        card.reply_slots[lane] = reinterpret_cast<uint64_t>(queues.replies[lane]);
    }
    for (size_t rail = 0; rail < job.n_rails; ++rail) {
        RailCard& entry = card.rails[rail];
        entry.address = nics[rail]->address();
        entry.agent.qp_num = static_cast<uint16_t>(queues.agent[rail].qp().qp_num);
        entry.agent.qkey = queues.agent[rail].qp().qkey;
        for (int lane = 0; lane < kLanes; ++lane)
            entry.lane_qp_num[lane] = static_cast<uint16_t>(queues.lanes[lane][rail].qp().qp_num);
        const size_t gpu_queues = queues.gpu.size() / job.n_rails;
        for (size_t i = 0; i < gpu_queues; ++i)
            entry.gpu_qp_num[i] = static_cast<uint16_t>(queues.gpu[rail * gpu_queues + i]->view().qp_num);
        entry.control_rkey = control.rkey(rail);
    }
    return card;
}

Status make_address_handles(const std::vector<std::unique_ptr<Nic>>& nics, const std::vector<PeCard>& cards, Job* job) {
    job->peers.resize(cards.size());
    for (size_t pe = 0; pe < cards.size(); ++pe) {
        Peer& peer = job->peers[pe];
        peer.card = cards[pe];
        for (size_t rail = 0; rail < job->n_rails; ++rail) {
            EFA_TRY(nics[rail]
                        ->create_address_handle(cards[pe].rails[rail].address, &peer.ah[rail])
                        .with_context("reaching PE " + std::to_string(pe) + " over " + nics[rail]->info().name));
            peer.agent[rail] = cards[pe].rails[rail].agent;
            peer.agent[rail].ah = peer.ah[rail].ahn;
        }
    }
    return Status();
}

}  // namespace

Status check_hello(const Hello& mine, const Hello& other, int expected_pe) {
    constexpr const char* kHint = "install the same nvshmem-efa on all nodes and give all PEs the same NVSHMEM_EFA_* settings";
    if (other.magic != kHelloMagic) {
        return Status::error(Code::kMismatch, kHint, "PE %d speaks another protocol (first word %#x): is its remote "
                             "transport not nvshmem-efa?", expected_pe, other.magic);
    }
    if (other.wire_version != mine.wire_version || strncmp(other.version, mine.version, sizeof mine.version) != 0) {
        return Status::error(Code::kMismatch, kHint, "PE %d runs nvshmem-efa %.23s (protocol %u), this PE %d runs %.23s (%u)",
                             expected_pe, other.version, other.wire_version, mine.pe, mine.version, mine.wire_version);
    }
    if (other.pe != expected_pe || other.n_pes != mine.n_pes) {
        return Status::error(Code::kMismatch, "start all PEs with one launcher", "PE %d calls itself PE %d of %d; this job has %d PEs",
                             expected_pe, other.pe, other.n_pes, mine.n_pes);
    }
    if (strncmp(other.mode, mine.mode, sizeof mine.mode) != 0) {
        return Status::error(Code::kMismatch, kHint, "PE %d runs in mode %.15s, this PE %d in mode %.15s", expected_pe,
                             other.mode, mine.pe, mine.mode);
    }
    if (other.n_rails == 0 || other.n_rails > kRailsMax)
        return Status::error(Code::kMismatch, kHint, "PE %d has %u rails", expected_pe, other.n_rails);
    if (other.arrival_slots != mine.arrival_slots) {
        return Status::error(Code::kMismatch, kHint, "PE %d runs with NVSHMEM_EFA_ARRIVALS=%u, this PE %d with %u", expected_pe,
                             other.arrival_slots, mine.pe, mine.arrival_slots);
    }
    if (other.arrival_source != mine.arrival_source) {
        return Status::error(Code::kMismatch, kHint, "PE %d runs with NVSHMEM_EFA_ARRIVAL_SOURCE=%s, this PE %d with %s", expected_pe,
                             arrival_source_text(other.arrival_source), mine.pe, arrival_source_text(mine.arrival_source));
    }
    return Status();
}

Status connect_job(const Bootstrap& bootstrap, const std::vector<std::unique_ptr<Nic>>& nics, const Knobs& knobs,
                   ControlMemory& control, Job* job, ConnectedQueues* queues) {
    if (bootstrap.n_pes < 1 || bootstrap.pe < 0 || bootstrap.pe >= bootstrap.n_pes) {
        return Status::error(Code::kInvalidArgument, nullptr, "PE %d of %d is not a valid rank", bootstrap.pe, bootstrap.n_pes);
    }
    log_set_pe(bootstrap.pe);
    Depths depths{};
    EFA_TRY(choose_depths(nics, knobs, &depths));
    job->pe = bootstrap.pe;
    job->n_pes = bootstrap.n_pes;
    std::vector<Hello> hellos;
    EFA_TRY(exchange_hello(bootstrap, nics, knobs, depths.rq, &hellos));
    EFA_TRY(settle_job(hellos, nics, knobs, job));
    for (const auto& nic : nics) EFA_TRY(nic->join_job(hellos[0].secret));
    // Receives, and twice a window of counted writes from every lane of every PE.
    depths.recv_cq = ceil_power_of_two(depths.rq + kImmediatesPerRecord * job->lanes * static_cast<uint32_t>(job->n_pes) * job->window);
    EFA_TRY(open_queues(nics, depths, knobs, *job, control, queues));
    const PeCard mine = make_card(nics, control, *queues, *job);
    std::vector<PeCard> cards(static_cast<size_t>(job->n_pes));
    EFA_TRY(bootstrap.allgather(&mine, cards.data(), sizeof mine).with_context("bootstrap allgather of addresses"));
    EFA_TRY(make_address_handles(nics, cards, job));
    return queues->arrivals ? queues->arrivals->exchange(bootstrap, *job) : Status();
}

}  // namespace nvshmem_efa
