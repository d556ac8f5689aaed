// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/admin_queue.h"

#include <algorithm>

#include "nvshmem_efa/ring.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint16_t kCrcReflected = 0xa001;  // 0x8005, bits reversed
constexpr uint16_t kCrcOnes = 0xffff;

// The phase bit of an entry: 1 on the first lap, flipped on every wrap.
uint8_t phase_of(uint32_t count, uint32_t depth) { return ((count / depth) & 1u) ^ 1u; }

Status check_ring(const QueueRegisters& ring, const char* which) {
    const bool has_size = ring.entry_bytes == kAdminEntryBytes || ring.entry_bytes == kAdminLongEntryBytes;
    if (is_power_of_two(ring.depth) && ring.depth <= kAdminDepthMax && has_size) return Status();
    return Status::error(Code::kProtocol, "the driver sets it up with base and caps registers after a reset",
                         "an admin %s queue of %u entries of %u bytes", which, ring.depth, ring.entry_bytes);
}

}  // namespace

uint16_t admin_checksum(const void* bytes, size_t length) {
    const auto* at = static_cast<const uint8_t*>(bytes);
    uint16_t crc = kCrcOnes;
    for (size_t i = 0; i < length; ++i) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; ++bit) crc = static_cast<uint16_t>((crc >> 1) ^ (crc & 1u ? kCrcReflected : 0));
    }
    return crc ^ kCrcOnes;
}

Status AdminQueue::ring(const QueueRegisters& commands, const QueueRegisters& completions, uint16_t producer,
                        uint32_t* done) {
    *done = 0;
    EFA_TRY(check_ring(commands, "command"));
    EFA_TRY(check_ring(completions, "completion"));
    const auto n = static_cast<uint16_t>(producer - taken_);
    if (n > commands.depth)
        return Status::error(Code::kProtocol, "the doorbell takes the absolute count of commands",
                             "the admin doorbell went from %u to %u on a queue of %u", taken_ & 0xffff, producer,
                             commands.depth);
    for (; *done < n; ++*done) {
        EFA_TRY(take(commands));
        AdminReply reply;
        const AdminStatus status = is_intact_ ? handler_->handle(command_, &reply) : AdminStatus::kMalformedRequest;
        if (status != AdminStatus::kSuccess) reply = AdminReply{};
        EFA_TRY(complete(completions, command_.id, status, reply));
    }
    return Status();
}

Status AdminQueue::take(const QueueRegisters& commands) {
    uint8_t entry[kAdminLongEntryBytes];
    const uint64_t at = commands.addr + static_cast<uint64_t>(taken_ & (commands.depth - 1)) * commands.entry_bytes;
    if (!memory_->read(at, entry, commands.entry_bytes))
        return Status::error(Code::kProtocol, "the ring must lie in the guest's RAM",
                             "admin command %u lies at 0x%llx, which is not RAM", taken_,
                             static_cast<unsigned long long>(at));
    AdminHeader header;
    std::memcpy(&header, entry, sizeof header);
    if ((header.flags & kAdminPhase) != phase_of(taken_, commands.depth))
        return Status::error(Code::kProtocol, "commands are written before the doorbell",
                             "admin command %u has the phase of another lap", taken_);
    ++taken_;
    command_ = AdminCommand{};
    command_.id = header.command_id & kAdminCommandIdMask;
    command_.opcode = header.opcode;
    command_.flags = header.flags;
    is_intact_ = true;
    size_t payload_at = sizeof(AdminHeader);
    if (commands.entry_bytes == kAdminLongEntryBytes) {
        AdminLongHeader header_long;
        std::memcpy(&header_long, entry, sizeof header_long);
        std::memset(entry + offsetof(AdminLongHeader, checksum), 0, sizeof header_long.checksum);
        is_intact_ = admin_checksum(entry, commands.entry_bytes) == header_long.checksum;
        payload_at = sizeof(AdminLongHeader);
    }
    std::memcpy(command_.payload, entry + payload_at, sizeof command_.payload);
    return Status();
}

Status AdminQueue::complete(const QueueRegisters& completions, uint16_t id, AdminStatus status,
                            const AdminReply& reply) {
    AdminCompletion entry{};
    entry.command_id = id;
    entry.status = static_cast<uint8_t>(status);
    entry.flags = phase_of(completed_, completions.depth);
    std::memcpy(entry.body, reply.body, sizeof entry.body);
    entry.checksum = admin_checksum(&entry, sizeof entry);
    const uint64_t at =
        completions.addr + static_cast<uint64_t>(completed_ & (completions.depth - 1)) * completions.entry_bytes;
    // The first word, with the phase bit, is stored last.
    if (!memory_->write(at, &entry, sizeof entry))
        return Status::error(Code::kProtocol, "the ring must lie in the guest's RAM",
                             "admin completion %u lies at 0x%llx, which is not RAM", completed_,
                             static_cast<unsigned long long>(at));
    ++completed_;
    return Status();
}

}  // namespace nvshmem_efa::soft::pci
