// SPDX-License-Identifier: Apache-2.0
// Tables of registered memory: entries are written whole, then counted. Kernels may be looking.
#include "gpu_lane.h"
#include "log.h"

namespace nvshmem_efa {

Status GpuLane::add_chunk(const std::vector<MemHandle>& handles) {
    const auto n_pes = static_cast<size_t>(job_.n_pes);
    if (handles.size() != n_pes)
        return Status::error(Code::kInternal, nullptr, "a heap chunk with handles of %zu PEs, of %zu", handles.size(), n_pes);
    const MemHandle& own = handles[static_cast<size_t>(job_.pe)];
    if (own.bytes == 0) return Status();  // not addressed by anything here
    const std::lock_guard lock(mutex_);
    const size_t chunk = chunks_.size();
    if (chunk >= kChunksMax) {
        return Status::error(Code::kResource, "let NVSHMEM allocate its heap in larger pieces (NVSHMEM_CUMEM_GRANULARITY)",
                             "the symmetric heap has more than %u pieces, which is all that GPU queues can know", kChunksMax);
    }
    if (chunk == 0) {
        heap_base_ = own.base;
        EFA_TRY(memory_->write(layout_.state + offsetof(DeviceState, heap_base), &heap_base_, sizeof heap_base_));
    }
    std::vector<uint64_t> bases(n_pes);
    std::vector<uint32_t> rkeys(n_pes * job_.n_rails);
    for (size_t pe = 0; pe < n_pes; ++pe) {
        bases[pe] = handles[pe].bytes ? handles[pe].base : 0;
        for (size_t rail = 0; rail < job_.n_rails; ++rail) rkeys[pe * job_.n_rails + rail] = handles[pe].rkey[rail];
    }
    // A chunk may lie below the first: the difference wraps, and so does the sum that posters make.
    const DeviceChunk entry{own.base - heap_base_, own.bytes};
    EFA_TRY(memory_->write(layout_.chunks + chunk * sizeof entry, &entry, sizeof entry));
    EFA_TRY(memory_->write(layout_.lkeys + chunk * job_.n_rails * sizeof(uint32_t), own.lkey, job_.n_rails * sizeof(uint32_t)));
    EFA_TRY(memory_->write(layout_.remote_bases + chunk * n_pes * sizeof(uint64_t), bases.data(), n_pes * sizeof(uint64_t)));
    EFA_TRY(memory_->write(layout_.rkeys + chunk * rkeys.size() * sizeof(uint32_t), rkeys.data(), rkeys.size() * sizeof(uint32_t)));
    chunks_.push_back({own.id, own.base});
    return memory_->publish32(layout_.state + offsetof(DeviceState, n_chunks), static_cast<uint32_t>(chunk + 1));
}

Status GpuLane::add_local(const MemHandle& handle) {
    const std::lock_guard lock(mutex_);
    size_t local = 0;
    while (local < locals_.size() && locals_[local].id != 0) ++local;
    if (local >= kLocalsMax) {
        // The host's own operations find the buffer without this table.
        EFA_LOG(kWarn, "gpu", "more than %u buffers are registered: the GPU cannot post from or to the one at %#llx; hint: "
                "register fewer and larger ones", kLocalsMax, static_cast<unsigned long long>(handle.base));
        return Status();
    }
    const size_t at = layout_.locals + local * sizeof(DeviceLocal);
    EFA_TRY(memory_->write(layout_.local_lkeys + local * job_.n_rails * sizeof(uint32_t), handle.lkey,
                           job_.n_rails * sizeof(uint32_t)));
    EFA_TRY(memory_->write(at + offsetof(DeviceLocal, base), &handle.base, sizeof handle.base));
    EFA_TRY(memory_->publish64(at + offsetof(DeviceLocal, bytes), handle.bytes));
    if (local < locals_.size()) {
        locals_[local] = {handle.id, handle.base};
        return Status();
    }
    locals_.push_back({handle.id, handle.base});
    return memory_->publish32(layout_.state + offsetof(DeviceState, n_locals), static_cast<uint32_t>(local + 1));
}

void GpuLane::forget(const MemHandle& handle) {
    const std::lock_guard lock(mutex_);
    const auto take_back = [&](std::vector<Entry>& entries, size_t bytes_at, size_t stride) {
        for (size_t i = 0; i < entries.size(); ++i) {
            if (entries[i].id != handle.id || entries[i].base != handle.base || handle.id == 0) continue;
            entries[i].id = 0;
            const Status status = memory_->publish64(bytes_at + i * stride, 0);
            if (!status.ok()) EFA_LOG(kWarn, "gpu", "taking memory back from posters: %s", status.message());
        }
    };
    take_back(locals_, layout_.locals + offsetof(DeviceLocal, bytes), sizeof(DeviceLocal));
    take_back(chunks_, layout_.chunks + offsetof(DeviceChunk, bytes), sizeof(DeviceChunk));
}

}  // namespace nvshmem_efa
