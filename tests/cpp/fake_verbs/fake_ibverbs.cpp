// SPDX-License-Identifier: Apache-2.0
// The exported half of libibverbs that the verbs provider calls. Numbers are offsets and bits of <infiniband/verbs.h>.
#include <atomic>
#include <cerrno>
#include <cstddef>

#include "fake_device.h"

using fake::Object;
using fake::read;
using fake::write;

namespace {

int failed(int entered) { return entered < 0 ? EIO : entered; }

void* null_with(int entered) {
    errno = entered < 0 ? 0 : entered;
    return nullptr;
}

fake::Answers& answers() { return fake::state().answers; }

int modify(Object* qp, int mask, uint32_t state) {
    const bool is_next = state == qp->qp_state + 1 && state <= 3;
    if (state != 0 && !is_next) return EINVAL;
    // What the kernel demands and takes on each step: state, pkey index, port, qkey; then sq_psn and perhaps rnr_retry.
    const int needed = state == 1 ? 0x71 : state == 3 ? 0x10001 : 0x1;
    const int allowed = state == 3 && (answers().efa_caps & 2) ? 0x10801 : needed;
    if ((mask & needed) != needed || (mask & ~allowed)) return EINVAL;
    qp->qp_state = state;
    return 0;
}

}  // namespace

extern "C" {

void** ibv_get_device_list(int* count) {
    if (int error = fake::enter("ibv_get_device_list")) return static_cast<void**>(null_with(error));
    const auto& devices = fake::state().devices;
    auto** list = new void*[devices.size() + 1];
    for (size_t i = 0; i < devices.size(); ++i) list[i] = const_cast<char*>(devices[i].c_str());
    list[devices.size()] = nullptr;
    *count = static_cast<int>(devices.size());
    ++fake::state().live["device_list"];
    return list;
}

void ibv_free_device_list(void** list) {
    fake::enter("ibv_free_device_list");
    --fake::state().live["device_list"];
    delete[] list;
}

const char* ibv_get_device_name(void* device) { return static_cast<const char*>(device); }

void* ibv_open_device(void* device) {
    const std::string name = static_cast<const char*>(device);
    if (int error = fake::enter("ibv_open_device")) return null_with(error);
    if (fake::state().live["device_list"] == 0) fake::state().violations.push_back("device opened from a freed list");
    Object* context = fake::make("context", {});
    context->ring.assign(name.begin(), name.end());
    return context;
}

int ibv_close_device(void* context) {
    if (int error = fake::enter("ibv_close_device")) return errno = failed(error), -1;
    return fake::destroy("context", context);
}

int ibv_query_device(void* context, void* attr) {
    if (int error = fake::enter("ibv_query_device")) return failed(error);
    if (!fake::is_live("context", context)) return EINVAL;
    std::memset(attr, 0, 232);
    write<int32_t>(attr, 108, answers().max_qp);
    write<int32_t>(attr, 112, answers().max_qp_wr);
    write<int32_t>(attr, 132, answers().max_cqe);
    write<int32_t>(attr, 136, answers().max_mr);
    return 0;
}

int ibv_query_port(void* context, uint8_t port, void* attr) {
    if (int error = fake::enter("ibv_query_port", {{"port", port}})) return failed(error);
    if (!fake::is_live("context", context)) return EINVAL;
    std::memset(attr, 0, 48);
    write<uint32_t>(attr, 0, answers().port_state);
    write<uint32_t>(attr, 20, answers().max_msg_sz);
    return 0;
}

int ibv_query_gid(void* context, uint8_t port, int index, uint8_t* gid) {
    if (int error = fake::enter("ibv_query_gid", {{"port", port}, {"index", static_cast<uint64_t>(index)}}))
        return failed(error);
    if (!fake::is_live("context", context)) return EINVAL;
    const auto& name = static_cast<Object*>(context)->ring;
    for (size_t i = 0; i < 16; ++i) gid[i] = answers().has_gid ? static_cast<uint8_t>(0xa0 + i + name.back()) : 0;
    return 0;
}

void* ibv_alloc_pd(void* context) {
    if (int error = fake::enter("ibv_alloc_pd")) return null_with(error);
    if (!fake::is_live("context", context)) return null_with(EINVAL);
    return fake::make("pd", {static_cast<Object*>(context)});
}

int ibv_dealloc_pd(void* pd) {
    if (int error = fake::enter("ibv_dealloc_pd")) return failed(error);
    return fake::destroy("pd", pd);
}

static Object* make_mr(void* pd) {
    static std::atomic<uint32_t> next_key = 0x11;
    if (!fake::is_live("pd", pd)) return nullptr;
    Object* mr = fake::make("mr", {static_cast<Object*>(pd)});
    const uint32_t key = next_key++;
    write<uint32_t>(mr->head, 36, key);
    write<uint32_t>(mr->head, 40, 0xab000000u + key);
    return mr;
}

// efa.ko: rights that the device cannot grant are EOPNOTSUPP.
bool may_grant(int access) {
    const uint32_t caps = answers().efa_caps;
    return (!(access & 4) || (caps & (1 << 0))) && (!(access & 2) || (caps & (1 << 3)));
}

void* ibv_reg_mr(void* pd, void* addr, size_t length, int access) {
    const int error = fake::enter("ibv_reg_mr", {{"addr", reinterpret_cast<uint64_t>(addr)},
                                                 {"length", length},
                                                 {"access", static_cast<uint64_t>(access)}});
    if (error) return null_with(error);
    return may_grant(access) ? make_mr(pd) : null_with(EOPNOTSUPP);
}

void* ibv_reg_dmabuf_mr(void* pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access) {
    const int error = fake::enter("ibv_reg_dmabuf_mr", {{"offset", offset},
                                                        {"length", length},
                                                        {"iova", iova},
                                                        {"fd", static_cast<uint64_t>(fd)},
                                                        {"access", static_cast<uint64_t>(access)}});
    if (error) return null_with(error);
    return answers().refuse_dmabuf || !may_grant(access) ? null_with(EOPNOTSUPP) : make_mr(pd);
}

int ibv_dereg_mr(void* mr) {
    if (int error = fake::enter("ibv_dereg_mr")) return failed(error);
    return fake::destroy("mr", mr);
}

int ibv_destroy_cq(void* cq) {
    if (int error = fake::enter("ibv_destroy_cq")) return failed(error);
    return fake::destroy("cq", cq);
}

int ibv_modify_qp(void* qp, void* attr, int mask) {
    const int error = fake::enter("ibv_modify_qp", {{"mask", static_cast<uint64_t>(mask)}}, attr, 144);
    if (error) return failed(error);
    if (!fake::is_live("qp", qp)) return EINVAL;
    return modify(static_cast<Object*>(qp), mask, read<uint32_t>(attr, 0));
}

int ibv_destroy_qp(void* qp) {
    if (int error = fake::enter("ibv_destroy_qp")) return failed(error);
    return fake::destroy("qp", qp);
}

void* ibv_create_ah(void* pd, void* attr) {
    if (int error = fake::enter("ibv_create_ah", {}, attr, 32)) return null_with(error);
    if (!fake::is_live("pd", pd)) return null_with(EINVAL);
    Object* ah = fake::make("ah", {static_cast<Object*>(pd)});
    std::memcpy(ah->gid, attr, 16);
    return ah;
}

int ibv_destroy_ah(void* ah) {
    if (int error = fake::enter("ibv_destroy_ah")) return failed(error);
    return fake::destroy("ah", ah);
}

int ibv_query_qp_data_in_order(void* qp, uint32_t opcode, uint32_t flags) {
    if (int error = fake::enter("ibv_query_qp_data_in_order", {{"opcode", opcode}, {"flags", flags}}))
        return -failed(error);
    return fake::is_live("qp", qp) && flags == 1 ? answers().data_in_order : 0;
}

int _ibv_query_comp_cntr_caps(void* context, void* caps, size_t bytes) {
    if (int error = fake::enter("_ibv_query_comp_cntr_caps", {{"bytes", bytes}})) return failed(error);
    if (!fake::is_live("context", context)) return EINVAL;
    write<uint64_t>(caps, 0, 0x7fffffff);
    write<uint32_t>(caps, 8, answers().max_counters);
    write<uint32_t>(caps, 12, answers().counter_ops);
    return 0;
}

int ibv_destroy_comp_cntr(void* counter) {
    if (int error = fake::enter("ibv_destroy_comp_cntr")) return failed(error);
    return fake::destroy("counter", counter);
}

int ibv_qp_attach_comp_cntr(void* qp, void* counter, void* attr) {
    if (int error = fake::enter("ibv_qp_attach_comp_cntr", {}, attr, 8)) return failed(error);
    if (!fake::is_live("qp", qp) || !fake::is_live("counter", counter)) return EINVAL;
    auto* object = static_cast<Object*>(qp);
    if (object->qp_state > 1) return EINVAL;  // RESET and INIT only
    for (Object*& used : object->uses) {
        if (used) continue;
        used = static_cast<Object*>(counter);
        ++used->users;
        return 0;
    }
    return ENOSPC;
}

}  // extern "C"
