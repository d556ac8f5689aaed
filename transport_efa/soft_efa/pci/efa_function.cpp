// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/efa_function.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "log.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint16_t kVendorAmazon = 0x1d0f;
constexpr uint32_t kClassEthernet = 0x020000;
constexpr uint32_t kCounterOps = 6;
constexpr uint32_t kRegisterBytes = 4;

}  // namespace

Profile EfaFunction::device_profile(const Profile& profile) {
    Profile device = profile;
    device.caps.cq_sgid = true;
    device.caps.cq_ext_mem = true;
    if (device.caps.completion_counters) device.caps.max_counters = kCounterOps * device.caps.max_qps;
    return device;
}

Status EfaFunction::create(const Profile& profile, Device* device, const GuestMemory* memory, FunctionHost* host,
                           std::unique_ptr<EfaFunction>* function) {
    std::unique_ptr<SendQueueBar> send_queues;
    EFA_TRY(SendQueueBar::create(profile.caps.max_qps, profile.caps.max_sq_depth * kSlotBytesSmall, &send_queues));
    function->reset(new EfaFunction(profile, device, memory, host, std::move(send_queues)));
    return Status();
}

EfaFunction::EfaFunction(const Profile& profile, Device* device, const GuestMemory* memory, FunctionHost* host,
                         std::unique_ptr<SendQueueBar> send_queues)
    : profile_(profile),
      device_(device),
      host_(host),
      send_queues_(std::move(send_queues)),
      objects_(profile),
      events_(&objects_, device, host),
      counters_(&objects_, device),
      commands_({profile, device, memory, host, &objects_, &events_, &counters_, send_queues_.get()}),
      admin_(memory, &commands_),
      registers_(profile.pci.admin_minor, memory, this) {
    identity_.vendor = identity_.subsystem_vendor = kVendorAmazon;
    identity_.device = identity_.subsystem = profile.pci.device_id;
    identity_.class_code = kClassEthernet;
    identity_.bars[kRegisterBar] = {kRegisterBarBytes, false, false, -1};
    identity_.bars[kSendQueueBar] = {send_queues_->bytes(), true, true, send_queues_->fd()};
    const uint64_t doorbell_pages = profile.caps.max_qps + profile.pci.max_cqs;
    identity_.bars[kDoorbellBar] = {std::bit_ceil(doorbell_pages * kDoorbellPage), false, false, -1};
    identity_.msix_vectors = static_cast<uint16_t>(1 + profile.pci.max_eqs);
    identity_.msix_bar = kRegisterBar;
    identity_.msix_table_offset = kMsixTableOffset;
    identity_.msix_pba_offset = kMsixPbaOffset;
}

EfaFunction::~EfaFunction() { free_everything(); }

uint64_t EfaFunction::bar_read(int bar, uint64_t offset, uint32_t bytes) {
    uint64_t value = UINT64_MAX;
    if (bar == kSendQueueBar && offset <= send_queues_->bytes() - bytes) {
        std::memcpy(&value, send_queues_->data() + offset, std::min<size_t>(bytes, sizeof value));
    } else if (bar == kRegisterBar && bytes == kRegisterBytes && offset < kRegistersEnd) {
        uint32_t word = UINT32_MAX;
        registers_.read(static_cast<uint32_t>(offset), &word);
        value = word;
    }
    return bytes >= sizeof value ? value : value & ((1ull << (8 * bytes)) - 1);
}

void EfaFunction::bar_write(int bar, uint64_t offset, uint64_t value, uint32_t bytes) {
    if (bar == kSendQueueBar && offset <= send_queues_->bytes() - bytes) {
        std::memcpy(send_queues_->data() + offset, &value, std::min<size_t>(bytes, sizeof value));
        return;
    }
    if (bytes != kRegisterBytes) {
        EFA_LOG(kDebug, "pci", "%s: the guest stored %u bytes at 0x%llx of BAR %d, where words are 4 bytes",
                device_->name().c_str(), bytes, static_cast<unsigned long long>(offset), bar);
        return;
    }
    const auto word = static_cast<uint32_t>(value);
    if (bar == kRegisterBar && offset < kRegistersEnd) registers_.write(static_cast<uint32_t>(offset), word);
    if (bar == kDoorbellBar) on_doorbell(offset, word);
}

void EfaFunction::on_doorbell(uint64_t offset, uint32_t value) {
    const auto page = static_cast<uint32_t>(offset / kDoorbellPage), at = static_cast<uint32_t>(offset % kDoorbellPage);
    if (page < profile_.caps.max_qps) {
        if (!objects_.qps.find(page) || (at != 0 && at != kReceiveDoorbellOffset)) return;
        DoorbellPair& pair = objects_.doorbells[page];
        // Release pairs with the device's acquire of its doorbells: the slots before it are the guest's latest.
        __atomic_store_n(at == 0 ? &pair.send : &pair.receive, value, __ATOMIC_RELEASE);
    } else if (at == 0) {
        events_.on_cq_doorbell(page - profile_.caps.max_qps, value);
    }
}

void EfaFunction::on_admin_doorbell(uint16_t producer) {
    if (registers_.is_fatal()) return;
    uint32_t done = 0;
    const QueueRegisters completions = registers_.admin_completions();
    const Status status = admin_.ring(registers_.admin_queue(), completions, producer, &done);
    if (!status.ok()) {
        EFA_LOG(kError, "pci", "%s takes no commands until it is reset: %s", device_->name().c_str(), status.message());
        registers_.set_fatal();
    }
    if (done != 0 && !registers_.is_admin_masked()) host_->raise(completions.vector);
}

void EfaFunction::on_eq_doorbell(uint16_t eq, bool is_armed) { events_.on_eq_doorbell(eq, is_armed); }

void EfaFunction::on_reset(uint32_t reason) {
    EFA_LOG(kDebug, "pci", "%s: the driver resets it, reason %u", device_->name().c_str(), reason);
    free_everything();
}

void EfaFunction::reset() {
    free_everything();
    registers_.power_on();
}

void EfaFunction::free_everything() {
    commands_.destroy_all();
    admin_.reset();
}

void EfaFunction::poll() {
    counters_.poll();
    events_.poll();
}

}  // namespace nvshmem_efa::soft::pci
