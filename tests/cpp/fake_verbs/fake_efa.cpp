// SPDX-License-Identifier: Apache-2.0
// The exported half of libefa that the verbs provider calls. Numbers are offsets and bits of <infiniband/efadv.h>.
#include <bit>
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

// The checks that libefa itself makes on a queue pair's attributes; 0 when they are good.
int check_qp(const void* attr, const void* efa) {
    const uint32_t caps = answers().efa_caps;
    const auto flags = read<uint16_t>(efa, 12);
    uint16_t flags_allowed = 0;
    if (caps & (1 << 3)) flags_allowed |= 2;  // RDMA write: inline write
    if (caps & (1 << 4)) flags_allowed |= 1;  // unsolicited
    uint64_t ops_allowed = 0xc;
    if (caps & (1 << 3)) ops_allowed |= 0x3;
    if (caps & (1 << 0)) ops_allowed |= 0x10;
    if (read<uint32_t>(attr, 52) != 0xff || read<uint32_t>(efa, 8) != 0 || read<uint64_t>(efa, 0) != 0) return EINVAL;
    if ((flags & ~flags_allowed) || (read<uint64_t>(attr, 128) & ~ops_allowed)) return EOPNOTSUPP;
    if (!(read<uint32_t>(attr, 60) & 1) || read<uint32_t>(attr, 44) == 0) return EINVAL;  // pd; receive SGEs divide
    const uint32_t slot_shift = (flags & 2) || read<uint32_t>(attr, 48) > 32 ? 1 : 0;
    if (read<uint32_t>(attr, 32) > answers().llq_slots >> slot_shift) return EINVAL;
    if (read<uint32_t>(attr, 36) > answers().max_rq_wr || read<uint32_t>(attr, 48) > answers().inline_large)
        return EINVAL;
    return 0;
}

}  // namespace

extern "C" {

int efadv_query_device(void* context, void* attr, uint32_t bytes) {
    if (int error = fake::enter("efadv_query_device", {{"bytes", bytes}})) return failed(error);
    if (!fake::is_live("context", context)) return EINVAL;
    std::memset(attr, 0, bytes);
    write<uint32_t>(attr, 8, answers().max_sq_wr);
    write<uint32_t>(attr, 12, answers().max_rq_wr);
    write<uint16_t>(attr, 16, answers().max_sq_sge);
    write<uint16_t>(attr, 18, 1);
    write<uint16_t>(attr, 20, answers().inline_small);
    write<uint16_t>(attr, 22, answers().inline_large);
    write<uint32_t>(attr, 24, answers().efa_caps);
    write<uint32_t>(attr, 28, answers().max_rdma);
    return 0;
}

int efadv_get_max_sq_depth(void* context, void* attr, uint32_t bytes) {
    if (int error = fake::enter("efadv_get_max_sq_depth", {{"bytes", bytes}}, attr, 24)) return -failed(error);
    return fake::is_live("context", context) ? static_cast<int>(answers().llq_slots) : -EINVAL;
}

int efadv_get_max_rq_depth(void* context, void* attr, uint32_t bytes) {
    if (int error = fake::enter("efadv_get_max_rq_depth", {{"bytes", bytes}}, attr, 16)) return -failed(error);
    const auto sges = read<uint32_t>(attr, 8);
    if (sges == 0 || !fake::is_live("context", context)) return -EINVAL;
    return static_cast<int>(answers().max_rq_wr / sges);
}

int efadv_query_ah(void* ah, void* attr, uint32_t bytes) {
    if (int error = fake::enter("efadv_query_ah", {{"bytes", bytes}})) return failed(error);
    if (!fake::is_live("ah", ah)) return EINVAL;
    write<uint16_t>(attr, 8, static_cast<uint16_t>(0x500 + static_cast<Object*>(ah)->gid[0]));
    return 0;
}

void* efadv_create_cq(void* context, void* attr, void* efa, uint32_t bytes) {
    if (int error = fake::enter("efadv_create_cq", {{"bytes", bytes}}, attr, 56, efa, bytes)) return null_with(error);
    if (!fake::is_live("context", context)) return null_with(EINVAL);
    const uint64_t wc_allowed = answers().efa_caps & (1 << 2) ? 1 : 0;
    if (read<uint64_t>(efa, 8) & ~wc_allowed) return null_with(EOPNOTSUPP);
    Object* cq = fake::make("cq", {static_cast<Object*>(context)});
    cq->entries = std::bit_ceil(read<uint32_t>(attr, 0));
    cq->entry_bytes = answers().cq_entry_bytes;
    cq->ring.resize(static_cast<size_t>(cq->entries) * 32);
    if (read<uint64_t>(efa, 16) & 1) write<void*>(cq->head, 0, read<void*>(efa, 24));
    return cq;
}

int efadv_query_cq(void* cq, void* attr, uint32_t bytes) {
    if (int error = fake::enter("efadv_query_cq", {{"bytes", bytes}})) return failed(error);
    if (!fake::is_live("cq", cq)) return EINVAL;
    auto* object = static_cast<Object*>(cq);
    void* external = read<void*>(object->head, 0);
    write<void*>(attr, 8, external ? external : object->ring.data());
    write<uint32_t>(attr, 16, object->entry_bytes);
    write<uint32_t>(attr, 20, object->entries);
    return 0;
}

void* efadv_create_qp_ex(void* context, void* attr, void* efa, uint32_t bytes) {
    static uint32_t next_number = 0x21;
    if (int error = fake::enter("efadv_create_qp_ex", {{"bytes", bytes}}, attr, 136, efa, bytes))
        return null_with(error);
    auto* send_cq = read<Object*>(attr, 8);
    auto* recv_cq = read<Object*>(attr, 16);
    auto* pd = read<Object*>(attr, 64);
    if (!fake::is_live("context", context) || !fake::is_live("pd", pd)) return null_with(EINVAL);
    if (!fake::is_live("cq", send_cq) || !fake::is_live("cq", recv_cq)) return null_with(EINVAL);
    if (int error = check_qp(attr, efa)) return null_with(error);
    Object* qp = fake::make("qp", {pd, send_cq, recv_cq});
    qp->entries = std::bit_ceil(read<uint32_t>(attr, 32));
    qp->entries2 = read<uint32_t>(attr, 36) ? std::bit_ceil(read<uint32_t>(attr, 36)) : 0;
    qp->entry_bytes = (read<uint16_t>(efa, 12) & 2) || read<uint32_t>(attr, 48) > 32 ? 128 : 64;
    if (answers().sq_entry_bytes) qp->entry_bytes = answers().sq_entry_bytes;
    qp->ring.resize(static_cast<size_t>(qp->entries) * 128);
    qp->ring2.resize(static_cast<size_t>(qp->entries2) * 16);
    write<uint32_t>(qp->head, 52, next_number++);
    return qp;
}

int efadv_query_qp_wqs(void* qp, void* sq, void* rq, uint32_t bytes) {
    if (int error = fake::enter("efadv_query_qp_wqs", {{"bytes", bytes}})) return failed(error);
    if (!fake::is_live("qp", qp)) return EINVAL;
    auto* object = static_cast<Object*>(qp);
    const uint32_t batch = answers().max_batch == 0xffff ? 0xffff : answers().max_batch * 64 / object->entry_bytes;
    write<void*>(sq, 8, object->ring.data());
    write<uint32_t>(sq, 16, object->entry_bytes);
    write<uint32_t>(sq, 20, object->entries);
    write<void*>(sq, 24, &object->doorbell);
    write<uint32_t>(sq, 32, batch);
    write<uint16_t>(sq, 36, answers().wq_caps);
    write<void*>(rq, 8, object->entries2 ? object->ring2.data() : nullptr);
    write<uint32_t>(rq, 16, 16);
    write<uint32_t>(rq, 20, object->entries2);
    write<void*>(rq, 24, object->entries2 ? &object->doorbell2 : nullptr);
    return 0;
}

void* efadv_create_comp_cntr(void* context, void* attr, void* efa, uint32_t bytes) {
    if (int error = fake::enter("efadv_create_comp_cntr", {{"bytes", bytes}}, attr, 12, efa, bytes))
        return null_with(error);
    if (!fake::is_live("context", context)) return null_with(EINVAL);
    if (read<uint32_t>(efa, 8) != 3) return null_with(EOPNOTSUPP);  // both words are the caller's
    return fake::make("counter", {static_cast<Object*>(context)});
}

}  // extern "C"
