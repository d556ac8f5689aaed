// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/registers.h"

#include "log.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint32_t kControllerVersion = 0x01000001;  // implementation 1, 0.0.1: the least that the driver takes
constexpr uint32_t kResetTimeout = 30;               // 3 s; the reset itself is done when the store returns
constexpr uint32_t kAddressBits = 64;

uint64_t join(const uint32_t* words) { return words[0] | (static_cast<uint64_t>(words[1]) << 32); }

}  // namespace

void Registers::power_on() {
    for (int i = 0; i < 3; ++i) aq_[i] = acq_[i] = aenq_[i] = 0;
    aenq_consumed_ = intr_mask_ = control_ = 0;
    answer_[0] = answer_[1] = 0;
    status_ = kStsReady;
}

uint32_t* Registers::stored(uint32_t offset) {
    switch (offset) {
        case kRegAqBaseLo: return &aq_[0];
        case kRegAqBaseHi: return &aq_[1];
        case kRegAqCaps: return &aq_[2];
        case kRegAcqBaseLo: return &acq_[0];
        case kRegAcqBaseHi: return &acq_[1];
        case kRegAcqCaps: return &acq_[2];
        case kRegAenqBaseLo: return &aenq_[0];
        case kRegAenqBaseHi: return &aenq_[1];
        case kRegAenqCaps: return &aenq_[2];
        case kRegAenqDoorbell: return &aenq_consumed_;
        case kRegIntrMask: return &intr_mask_;
        case kRegReadAnswerLo: return &answer_[0];
        case kRegReadAnswerHi: return &answer_[1];
        default: return nullptr;
    }
}

void Registers::write(uint32_t offset, uint32_t value) {
    if (uint32_t* word = stored(offset)) {
        *word = value;
        return;
    }
    switch (offset) {
        case kRegDevCtl: control(value); break;
        case kRegReadRequest: answer_read(value); break;
        case kRegAqDoorbell: events_->on_admin_doorbell(static_cast<uint16_t>(value)); break;
        case kRegEqDoorbell:
            events_->on_eq_doorbell(static_cast<uint16_t>(value), value & kEqDoorbellArm);
            break;
        default: EFA_LOG(kDebug, "pci", "the guest stored 0x%x to register 0x%x, which takes no stores", value, offset);
    }
}

// A reset lasts from the store that asks for it to the store that takes the request back: in between the driver must
// see it in progress. It also forgets where answers to reads go; the driver says it anew.
void Registers::control(uint32_t value) {
    if (value & kCtlReset) {
        events_->on_reset(value >> kCtlResetReasonShift);
        power_on();
        status_ = kStsReady | kStsResetInProgress;
    } else if (status_ & kStsResetInProgress) {
        status_ = kStsReady | kStsResetFinished;
    }
    control_ = value;
}

bool Registers::read(uint32_t offset, uint32_t* value) const {
    switch (offset) {
        case kRegVersion: *value = admin_minor_; return true;
        case kRegControllerVersion: *value = kControllerVersion; return true;
        case kRegCaps:
            *value = kCapsContiguousQueues | kResetTimeout << kCapsResetTimeoutShift |
                     kAddressBits << kCapsAddressBitsShift;
            return true;
        case kRegDevCtl: *value = control_; return true;
        case kRegDevSts: *value = status_; return true;
        default: break;
    }
    const uint32_t* word = const_cast<Registers*>(this)->stored(offset);
    *value = word ? *word : UINT32_MAX;
    return word != nullptr;
}

void Registers::answer_read(uint32_t request) {
    ReadAnswer answer;
    answer.request = static_cast<uint16_t>(request);
    answer.offset = static_cast<uint16_t>(request >> 16);
    if (!read(answer.offset, &answer.value)) answer.offset = kReadAnswerNone;
    const uint64_t at = join(answer_);
    // The first word, with the request's number, is stored last.
    if (!memory_->write(at, &answer, sizeof answer))
        EFA_LOG(kDebug, "pci", "no answer to a read of register 0x%x: guest address 0x%llx is not RAM", request >> 16,
                static_cast<unsigned long long>(at));
}

QueueRegisters Registers::admin_queue() const { return {join(aq_), aq_[2] & 0xffff, aq_[2] >> 16, 0}; }

QueueRegisters Registers::admin_completions() const {
    return {join(acq_), acq_[2] & 0xffff, (acq_[2] >> 16) & 0xff, acq_[2] >> 24};
}

}  // namespace nvshmem_efa::soft::pci
