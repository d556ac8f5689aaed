// SPDX-License-Identifier: Apache-2.0
// What both sources of counts share, and counters. Immediates: arrival_immediates.cpp.
#include "arrival_queues.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "log.h"

namespace nvshmem_efa {

namespace {

constexpr size_t kArrivalPage = 65536;  // the largest base page of the machines we know
constexpr uint32_t kIdleCqDepth = 16;
constexpr const char* kSources[] = {"auto", "counters", "immediates"};
constexpr uint8_t kAuto = 0, kImmediates = 2;

Status check_limit(const Job& job, const Nic& nic, uint32_t needed, uint32_t have, const char* what) {
    if (needed <= have) return Status();
    return Status::error(Code::kResource, "lower NVSHMEM_EFA_ARRIVALS, or set NVSHMEM_EFA_ARRIVAL_SOURCE=immediates",
                         "%u arrival slots for each of %d PEs need %u %s on %s, which has %u",
                         job.arrival_slots, job.n_pes, needed, what, nic.info().name.c_str(), have);
}

Status check_limits(const Job& job, const Nic& nic, const ArrivalAttr& attr) {
    const uint32_t targets = static_cast<uint32_t>(job.n_pes) * job.arrival_slots;
    const NicCaps& caps = nic.info().caps;
    EFA_TRY(check_limit(job, nic, targets + attr.queues_taken, caps.max_qps, "queue pairs"));
    return check_limit(job, nic, targets + attr.counters_taken, caps.max_counters, "completion counters");
}

}  // namespace

uint8_t arrival_source_code(const Knobs& knobs) {
    uint8_t code = 0;
    while (code + 1u < std::size(kSources) && knobs.arrival_source != kSources[code]) ++code;
    return code;
}

const char* arrival_source_text(uint8_t code) { return code < std::size(kSources) ? kSources[code] : "unknown"; }

Status settle_arrivals(const std::vector<Hello>& hellos, Job* job) {
    job->arrival_slots = hellos[0].arrival_slots;
    if (job->arrival_slots == 0) return Status();
    for (const Hello& hello : hellos) {
        if (hello.gpu_queues == 0) {
            return Status::error(Code::kConfig, "set NVSHMEM_EFA_GPU_QUEUES to 1 or more on all PEs",
                                 "NVSHMEM_EFA_ARRIVALS=%u, and PE %d has no queues from which counted puts are sent",
                                 job->arrival_slots, hello.pe);
        }
    }
    const uint8_t wish = hellos[0].arrival_source;
    const Hello* lacks_counters = nullptr;
    for (const Hello& hello : hellos)
        if (!hello.has_counters) lacks_counters = &hello;
    job->arrivals_by_immediate = wish == kImmediates || (wish == kAuto && lacks_counters);
    if (!job->arrivals_by_immediate && lacks_counters) {
        return Status::error(Code::kUnsupported, "they need p5en or newer, efa.ko 3.3 and rdma-core v65; or set NVSHMEM_EFA_ARRIVAL_SOURCE=auto",
                             "PE %d has a device without completion counters, so that its arrivals cannot be counted", lacks_counters->pe);
    }
    for (const Hello& hello : hellos)
        if (job->arrivals_by_immediate && hello.unsolicited != hellos[0].unsolicited) {
            return Status::error(Code::kUnsupported, "use devices of one kind, or set NVSHMEM_EFA_ARRIVALS=0",
                                 "devices of PE %d and PE %d differ in unsolicited write receive, so that immediates cannot pass between them",
                                 hellos[0].pe, hello.pe);
        }
    return Status();
}

Status ArrivalQueues::open(const Job& job, const std::vector<std::unique_ptr<Nic>>& nics, const ArrivalAttr& attr,
                           std::unique_ptr<ArrivalQueues>* queues) {
    std::unique_ptr<ArrivalQueues> made(new ArrivalQueues);
    made->slots_ = job.arrival_slots;
    made->n_rails_ = job.n_rails;
    made->n_ = static_cast<size_t>(job.n_pes) * made->slots_ * made->n_rails_;
    made->made_.resize(made->n_);
    made->biases_.assign(made->n_, 0);
    if (job.arrivals_by_immediate) {
        EFA_TRY(made->open_immediates(job, nics, attr).with_context("immediates of arrivals"));
    } else {
        for (size_t rail = 0; rail < job.n_rails; ++rail) EFA_TRY(check_limits(job, *nics[rail], attr));
        EFA_TRY(made->open_counters(nics, attr).with_context("counters of arrivals"));
        made->unread_max_ = kCounterMask31;
    }
    *queues = std::move(made);
    return Status();
}

// The GPU's page tables first, then those who write the memory, then the memory.
ArrivalQueues::~ArrivalQueues() {
    close_immediates();
    host_map_.unmap();
    close_counters();
    gpu_memory_.release();
    if (host_memory_) munmap(host_memory_, bytes_);
}

void ArrivalQueues::close_counters() {
    for (const Made& made : made_)
        if (made.qp) (void)made.nic->destroy_qp(made.qp);
    for (Made& made : made_) {
        if (made.counter) (void)made.nic->destroy_counter(made.counter);
        made = Made{};
    }
    for (const auto& [nic, cq] : cqs_) (void)nic->destroy_cq(cq);
    cqs_.clear();
}

// A counter in the memory of the GPU that the payload goes to is written behind that payload, on the same way. One in
// host memory is not: it serves posters that are CPU threads, the software device, which counts when the copy is done,
// and GPUs whose memory no counter can be put into.
Status ArrivalQueues::open_counters(const std::vector<std::unique_ptr<Nic>>& nics, const ArrivalAttr& attr) {
    const size_t bytes = 2 * n_ * sizeof(uint64_t);
    if (attr.posters == MemoryKind::kCuda && !attr.is_soft) {
        Status status = gpu_memory_.allocate_zeroed(bytes);
        if (status.ok()) {
            words_ = gpu_memory_.data();
            words_kind_ = MemoryKind::kCuda;
            counts_at_posters_ = reinterpret_cast<const uint64_t*>(words_);
            status = make_counters(nics, attr.qkey);
            if (status.ok()) return status;
        }
        EFA_LOG(kWarn, "gpu", "counters of arrivals go to host memory, where nothing orders them behind payloads in GPU memory: %s",
                status.message());
        close_counters();
        gpu_memory_.release();
    }
    EFA_TRY(map_host_memory(bytes, attr.posters));
    return make_counters(nics, attr.qkey);
}

Status ArrivalQueues::map_host_memory(size_t bytes, MemoryKind posters) {
    bytes_ = (bytes + kArrivalPage - 1) / kArrivalPage * kArrivalPage;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return Status::error(Code::kResource, "free memory", "no memory for %zu bytes of counters: %s", bytes_, strerror(errno));
    words_ = host_memory_ = static_cast<uint8_t*>(memory);
    words_kind_ = MemoryKind::kHost;
    if (posters == MemoryKind::kCuda) EFA_TRY(host_map_.map(words_, bytes_, 0, "counters of arrivals"));
    const auto* const counts = reinterpret_cast<const uint64_t*>(words_);
    counts_at_posters_ = posters == MemoryKind::kCuda ? host_map_.at_gpu(counts) : counts;
    return Status();
}

Status ArrivalQueues::make_counters(const std::vector<std::unique_ptr<Nic>>& nics, uint32_t qkey) {
    for (size_t rail = 0; rail < n_rails_; ++rail) {
        Cq cq;  // neither sends nor plain writes end in it
        CqAttr attr;
        attr.depth = kIdleCqDepth;
        EFA_TRY(nics[rail]->create_cq(attr, &cq));
        cqs_.emplace_back(nics[rail].get(), cq.handle);
        for (size_t index = rail; index < n_; index += n_rails_) EFA_TRY(open_queue(*nics[rail], cq.handle, qkey, index));
    }
    if (words_kind_ == MemoryKind::kHost)
        for (size_t i = 0; i < n_; ++i)
            // Acquire: as every look at a counter. Nobody sends yet. A device's counter may start anywhere; the host
            // cannot look at those in GPU memory, which are taken to start at zero.
            biases_[i] = static_cast<uint32_t>(__atomic_load_n(reinterpret_cast<uint64_t*>(words_) + i, __ATOMIC_ACQUIRE));
    return Status();
}

Status ArrivalQueues::open_queue(Nic& nic, uint64_t cq, uint32_t qkey, size_t index) {
    Made& made = made_[index];
    made.nic = &nic;
    QpAttr qp_attr;
    qp_attr.send_cq = qp_attr.recv_cq = cq;
    qp_attr.sq_depth = kIdleSqDepth;
    qp_attr.unsolicited_recv = nic.info().caps.unsolicited_write_recv;  // as the senders' queues: both ends must agree
    qp_attr.qkey = qkey;
    Qp qp;
    EFA_TRY(nic.create_qp(qp_attr, &qp));
    made.qp = qp.handle;
    made.qp_num = static_cast<uint16_t>(qp.qp_num);
    CounterAttr counter;
    counter.completions = reinterpret_cast<uint64_t*>(words_) + index;
    counter.errors = counter.completions + n_;
    counter.kind = words_kind_;
    EFA_TRY(nic.create_counter(counter, &made.counter));
    return nic.attach_counter(made.qp, made.counter, kCountRemoteWrite);
}

Status ArrivalQueues::exchange(const Bootstrap& bootstrap, const Job& job) {
    const size_t n_pes = job.peers.size(), per_pe = size_t{slots_} * n_rails_;
    std::vector<uint16_t> mine(n_), all(n_ * n_pes);
    for (size_t i = 0; i < n_; ++i) mine[i] = made_[i].qp_num;
    EFA_TRY(bootstrap.allgather(mine.data(), all.data(), n_ * sizeof(uint16_t)).with_context("bootstrap allgather of arrival queues"));
    targets_.resize(n_);
    for (size_t pe = 0; pe < n_pes; ++pe)
        for (size_t i = 0; i < per_pe; ++i) {
            const WqeTarget& agent = job.peers[pe].agent[i % n_rails_];  // same device, same key
            targets_[pe * per_pe + i] = {agent.ah, all[pe * n_ + static_cast<size_t>(job.pe) * per_pe + i], agent.qkey};
        }
    return Status();
}

std::string ArrivalQueues::describe() const {
    const std::string text = "arrivals at " + std::to_string(slots_) + " slots a PE by ";
    if (rails_.empty()) return text + "counters in " + (words_kind_ == MemoryKind::kCuda ? "GPU" : "host") + " memory";
    return text + "immediates in " + (rails_[0]->gpu_entries.data() ? "GPU" : "host") + " memory";
}

}  // namespace nvshmem_efa
