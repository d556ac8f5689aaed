// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fabric/verbs_errno.h"
#include "fabric/verbs_queues.h"
#include "log.h"

namespace nvshmem_efa::verbs {
namespace {

constexpr uint8_t kPort = 1;
constexpr uint32_t kProbeDepth = 64;

uint32_t at_least_zero(int value) { return value > 0 ? static_cast<uint32_t>(value) : 0; }

void apply_efa_caps(const EfaDeviceAttr& attr, NicCaps* caps) {
    const auto has = [&](uint32_t bit) { return (attr.device_caps & bit) != 0; };
    caps->rdma_read = has(kEfaCapRdmaRead);
    caps->rdma_write = has(kEfaCapRdmaWrite);
    caps->rnr_retry = has(kEfaCapRnrRetry);
    caps->unsolicited_write_recv = has(kEfaCapUnsolicited);
    caps->cq_sgid = has(kEfaCapCqSgid);
    caps->cq_ext_mem = has(kEfaCapCqExtMem);
    caps->completion_counters = has(kEfaCapCompCounter);
    caps->max_inline_small = std::min<uint32_t>(attr.inline_buf_size, kInlineSendSmallMax);
    // The extended size repeats the small one where the device has no 128-byte slots.
    if (caps->rdma_write && attr.inline_buf_size_ex > kInlineSendSmallMax) {
        caps->inline_write = true;
        caps->max_inline_large = std::min<uint32_t>(attr.inline_buf_size_ex, kInlineLargeMax);
    }
    caps->max_rdma_bytes = attr.max_rdma_size;
}

// The send queue lives in a window of device memory, so that its depth has two limits: the device's own and the window.
Status query_send_depth(const OpenDevice& device, const EfaDeviceAttr& efa, const IbvDeviceAttr& base, NicCaps* caps) {
    uint32_t depth = std::min(efa.max_sq_wr, at_least_zero(base.max_qp_wr));
    if (device.api().efa_max_sq_depth != nullptr) {
        EfaSqDepthAttr attr = {};
        attr.max_send_sge = device.max_send_sges();
        attr.max_rdma_sge = 1;
        attr.max_inline_data = caps->max_inline_small;
        const int answer = device.api().efa_max_sq_depth(device.context(), &attr, sizeof(attr));
        if (answer < 0) return call_failed(device.name(), "efadv_get_max_sq_depth", "", answer);
        depth = std::min(efa.max_sq_wr, static_cast<uint32_t>(answer));
    }
    caps->max_sq_depth = round_down_to_power_of_two(depth);
    return Status();
}

Status query_recv_depth(const OpenDevice& device, const EfaDeviceAttr& efa, NicCaps* caps) {
    uint32_t depth = efa.max_rq_wr;
    if (device.api().efa_max_rq_depth != nullptr) {
        EfaRqDepthAttr attr = {};
        attr.max_recv_sge = 1;
        const int answer = device.api().efa_max_rq_depth(device.context(), &attr, sizeof(attr));
        if (answer < 0) return call_failed(device.name(), "efadv_get_max_rq_depth", "", answer);
        depth = std::min(depth, static_cast<uint32_t>(answer));
    }
    caps->max_rq_depth = round_down_to_power_of_two(depth);
    return Status();
}

}  // namespace

OpenDevice::~OpenDevice() {
    if (pd_) {
        const int error = api().dealloc_pd(pd_);
        if (error) EFA_LOG(kWarn, "verbs", "ibv_dealloc_pd failed on %s: %s", name_.c_str(), errno_text(error).c_str());
    }
    if (context_) {
        errno = 0;
        if (api().close_device(context_) != 0) {
            EFA_LOG(kWarn, "verbs", "ibv_close_device failed on %s: %s", name_.c_str(), errno_text(errno).c_str());
        }
    }
}

Status OpenDevice::open(std::shared_ptr<const VerbsLibrary> library, IbvDevice* device, const std::string& name,
                        std::unique_ptr<OpenDevice>* opened) {
    std::unique_ptr<OpenDevice> made(new OpenDevice(std::move(library), name));
    errno = 0;
    made->context_ = made->api().open_device(device);
    if (made->context_ == nullptr) return call_failed(name, "ibv_open_device", "", errno);
    EFA_TRY(made->query());
    EFA_TRY(made->check_minimum());
    EFA_TRY(made->query_counters());
    EFA_TRY(made->query_address());
    errno = 0;
    made->pd_ = made->api().alloc_pd(made->context_);
    if (made->pd_ == nullptr) return call_failed(name, "ibv_alloc_pd", "", errno);
    EFA_TRY(made->probe_queue());
    made->log_degradations();
    *opened = std::move(made);
    return Status();
}

Status OpenDevice::query() {
    EfaDeviceAttr efa = {};
    int error = api().efa_query_device(context_, &efa, sizeof(efa));
    if (error != 0) {
        return call_failed(name_, "efadv_query_device", "", error,
                           error == EOPNOTSUPP
                               ? "libibverbs uses another copy of libefa than the one we loaded; keep one "
                                 "rdma-core on the library path"
                               : nullptr);
    }
    IbvDeviceAttr base = {};
    error = api().query_device(context_, &base);
    if (error != 0) return call_failed(name_, "ibv_query_device", "", error);
    apply_efa_caps(efa, &caps_);
    max_send_sges_ = std::clamp<uint32_t>(efa.max_sq_sge, 1, kSendSgesMax);
    caps_.max_cq_depth = round_down_to_power_of_two(at_least_zero(base.max_cqe));
    caps_.max_qps = at_least_zero(base.max_qp);
    caps_.max_mrs = at_least_zero(base.max_mr);
    EFA_TRY(query_send_depth(*this, efa, base, &caps_));
    return query_recv_depth(*this, efa, &caps_);
}

Status OpenDevice::check_minimum() const {
    if (!caps_.rdma_write) {
        return Status::error(Code::kUnsupported,
                             "RDMA write needs p5 or newer (EFA generation 2) with efa.ko 2.4 or newer",
                             "%s has no RDMA write", name_.c_str());
    }
    return Status();
}

Status OpenDevice::query_counters() {
    if (!caps_.completion_counters) return Status();
    caps_.completion_counters = false;
    if (!library_->has_counter_calls()) return Status();
    IbvCompCounterCaps counters = {};
    const int error = api().query_counter_caps(context_, &counters, sizeof(counters));
    if (error != 0) {
        EFA_LOG(kDebug, "verbs", "%s: completion counters cannot be queried: %s", name_.c_str(),
                errno_text(error).c_str());
        return Status();
    }
    caps_.max_counters = counters.max_counters;
    // Without a counter of its own writes there is nothing that quiet could wait on.
    caps_.completion_counters = counters.max_counters > 0 && (counters.supported_ops & kAttachWrite) != 0;
    return Status();
}

Status OpenDevice::query_address() {
    // More room than the call fills: a library that writes the long struct must not overrun us.
    struct {
        IbvPortAttr attr;
        uint8_t room[64];
    } port = {};
    int error = api().query_port(context_, kPort, &port.attr);
    if (error != 0) return call_failed(name_, "ibv_query_port", "", error);
    if (port.attr.state != kPortActive) {
        return Status::error(Code::kMissing,
                             "leave the device out with NVSHMEM_EFA_DEVICES, or find out why its link is down",
                             "the port of %s is not active (state %u)", name_.c_str(), port.attr.state);
    }
    caps_.mtu = port.attr.max_msg_sz;
    IbvGid gid = {};
    error = api().query_gid(context_, kPort, 0, &gid);
    if (error != 0) return call_failed(name_, "ibv_query_gid", "", error);
    std::memcpy(gid_.raw, gid.raw, sizeof(gid_.raw));
    if (gid_ == Gid()) {
        return Status::error(Code::kDevice, "dmesg | grep efa may name the reason",
                             "%s has no address (GID 0 is empty)", name_.c_str());
    }
    return Status();
}

Status OpenDevice::probe_queue() {
    MadeCq cq;
    MadeQp qp;
    const uint32_t depth = std::min(kProbeDepth, caps_.max_sq_depth);
    EFA_TRY(make_cq(*this, {.depth = std::min(kProbeDepth, caps_.max_cq_depth)}, nullptr, &cq));
    Status status =
        make_qp(*this, {.sq_depth = depth, .rq_depth = std::min(kProbeDepth, caps_.max_rq_depth)}, cq.cq, cq.cq, &qp);
    if (status.ok()) {
        caps_.req_id_64 = (qp.sq.caps & kEfaWqCap64BitReqId) != 0;
        // One less than the queue is a rule of that queue, not of the device; QpAttr carries the queue's own limit.
        const bool has_limit = qp.sq.max_batch != kEfaNoBatchLimit && qp.sq.max_batch + 1 < qp.sq.num_entries;
        caps_.max_tx_batch_units = has_limit ? qp.sq.max_batch * (qp.sq.entry_size / 64) : 0;
        if (api().query_qp_data_in_order != nullptr) {
            const int answer = api().query_qp_data_in_order(qp.qp, kOpcodeRdmaWrite, kDataInOrderReturnCaps);
            caps_.data_polling_128 = answer > 0 && (answer & kDataInOrderAligned128) != 0;
        }
        const int error = api().destroy_qp(qp.qp);
        if (error != 0) status = call_failed(name_, "ibv_destroy_qp", "scratch queue", error);
    }
    const int error = api().destroy_cq(cq.cq);
    if (status.ok() && error != 0) status = call_failed(name_, "ibv_destroy_cq", "scratch queue", error);
    return std::move(status).with_context("while probing the device");
}

void OpenDevice::log_degradations() const {
    const struct {
        bool is_there;
        const char* what;
    } lines[] = {
        {caps_.rdma_read, "no RDMA read: get is not possible"},
        {caps_.rnr_retry, "no RNR retry: a receiver that is not ready is retried by the sender's program"},
        {caps_.unsolicited_write_recv,
         "no unsolicited write receive: a write with immediate uses a receive descriptor"},
        {caps_.cq_sgid, "no source GID in completions: a sender without address handle stays unknown"},
        {caps_.cq_ext_mem, "no completion queue in GPU memory (efa.ko 2.17, rdma-core v59): it stays in host memory"},
        {caps_.inline_write, "no 128-byte slots (efa.ko 3.1, rdma-core v63): small puts are staged instead of inline"},
        {caps_.req_id_64, "no 64-bit request ids (rdma-core v65): 16 bits"},
        {caps_.completion_counters,
         "no completion counters (efa.ko 3.3, rdma-core v65): completions are counted from the CQ"},
        {caps_.data_polling_128, "no promise of whole 128-byte blocks"},
        {api().reg_dmabuf_mr != nullptr, "no ibv_reg_dmabuf_mr (rdma-core v34): GPU memory by peer memory module only"},
    };
    for (const auto& line : lines) {
        if (!line.is_there) EFA_LOG(kDebug, "verbs", "%s: %s", name_.c_str(), line.what);
    }
}

}  // namespace nvshmem_efa::verbs
