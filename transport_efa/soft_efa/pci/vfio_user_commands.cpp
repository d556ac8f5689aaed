// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/vfio_user_commands.h"

#include <linux/vfio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "log.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint32_t kRegions = VFIO_PCI_NUM_REGIONS;
constexpr uint32_t kIrqTypes = VFIO_PCI_MSIX_IRQ_INDEX + 1;  // no error and request interrupts: QEMU does without
constexpr uint32_t kRefusalsLogged = 20;
constexpr uint64_t kMsixEntryBytes = 16;

// The body is exactly one T.
template <class T>
bool parse(const VfioUserMessage& message, T* to) {
    if (message.body.size() != sizeof *to) return false;
    std::memcpy(to, message.body.data(), sizeof *to);
    return true;
}

// The body begins with a T; `*rest` is what follows.
template <class T>
bool parse_start(const VfioUserMessage& message, T* to, size_t* rest) {
    if (message.body.size() < sizeof *to) return false;
    std::memcpy(to, message.body.data(), sizeof *to);
    *rest = message.body.size() - sizeof *to;
    return true;
}

template <class T>
std::vector<uint8_t> bytes_of(const T& value) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&value);
    return std::vector<uint8_t>(bytes, bytes + sizeof value);
}

// Of what this server says of itself, that which the client named too: a reply may not offer more than was proposed.
std::string capabilities_for(const std::string& proposed) {
    const std::pair<const char*, std::string> ours[] = {
        {"\"max_msg_fds\"", std::to_string(kVfioUserFdsMax)},
        {"\"max_data_xfer_size\"", std::to_string(kVfioUserTransferMax)},
        {"\"max_dma_maps\"", std::to_string(GuestMemory::kRangesMax)},
        {"\"pgsizes\"", "4096"},
        {"\"write_multiple\"", "true"},
    };
    std::string members;
    for (const auto& [name, value] : ours) {
        if (proposed.find(name) == std::string::npos) continue;
        members += (members.empty() ? "" : ",") + std::string(name) + ":" + value;
    }
    return "{\"capabilities\":{" + members + "}}";
}

}  // namespace

Status VfioUserCommands::handle(VfioUserMessage* message, VfioUserChannel* channel) {
    const VfioUserHeader header = message->header;
    EFA_LOG(kTrace, "pci", "vfio-user command %u of %u bytes, %zu descriptors", header.command, header.bytes, message->fds.size());
    if (!has_version_) return negotiate(*message, channel);
    const Answer answer = carry_out(message);
    if (answer.error) note_refusal(header, answer.error);
    if (header.flags & kVfioUserNoReply) return Status();
    if (answer.error) return channel->reply_error(header, answer.error);
    return channel->reply(header, answer.body.data(), answer.body.size(), answer.fd);
}

void VfioUserCommands::note_refusal(const VfioUserHeader& header, int error) {
    const bool is_question = header.command == static_cast<uint16_t>(VfioUserCommand::kDeviceGetIrqInfo);
    if (is_question) return;  // QEMU asks every device for interrupts that ours does not have
    if (refusals_ < kRefusalsLogged) {
        EFA_LOG(kWarn, "pci", "vfio-user command %u of %u bytes refused: %s%s", header.command, header.bytes, std::strerror(error),
                refusals_ + 1 == kRefusalsLogged ? " (further ones of this client are not logged)" : "");
    }
    if (refusals_ < kRefusalsLogged) ++refusals_;
}

// What the client's text says is only looked at for names: what its numbers limit (descriptors and bytes that we
// send) we never come near, one descriptor and what it asked for.
Status VfioUserCommands::negotiate(const VfioUserMessage& message, VfioUserChannel* channel) {
    VfioUserVersion version;
    size_t text_bytes = 0;
    constexpr const char* kHint = "use QEMU 10.1 or newer with -device vfio-user-pci";
    if (message.header.command != static_cast<uint16_t>(VfioUserCommand::kVersion)) {
        return Status::error(Code::kProtocol, kHint, "the client began with command %u, not with its version", message.header.command);
    }
    if (!message.fds.empty() || !parse_start(message, &version, &text_bytes) || (text_bytes > 0 && message.body.back() != 0)) {
        return Status::error(Code::kProtocol, kHint, "the client's version message of %u bytes with %zu descriptors is not one",
                             message.header.bytes, message.fds.size());
    }
    if (version.major != 0) {
        return Status::error(Code::kProtocol, kHint, "the client speaks vfio-user %u.%u, this server 0.0", version.major, version.minor);
    }
    has_version_ = true;
    const std::string proposed(message.body.begin() + sizeof version, message.body.end());
    const std::string ours = capabilities_for(proposed);
    std::vector<uint8_t> body = bytes_of(VfioUserVersion{0, 0});
    body.insert(body.end(), ours.c_str(), ours.c_str() + ours.size() + 1);  // with the NUL
    return channel->reply(message.header, body.data(), body.size());
}

VfioUserCommands::Answer VfioUserCommands::carry_out(VfioUserMessage* message) {
    const auto command = static_cast<VfioUserCommand>(message->header.command);
    const bool takes_fds = command == VfioUserCommand::kDmaMap || command == VfioUserCommand::kDeviceSetIrqs;
    if (!takes_fds && !message->fds.empty()) return {EINVAL, {}, -1};
    switch (command) {
        case VfioUserCommand::kDmaMap: return dma_map(message);
        case VfioUserCommand::kDmaUnmap: return dma_unmap(*message);
        case VfioUserCommand::kDeviceGetInfo: return device_info(*message);
        case VfioUserCommand::kDeviceGetRegionInfo: return region_info(*message);
        case VfioUserCommand::kDeviceGetIrqInfo: return irq_info(*message);
        case VfioUserCommand::kDeviceSetIrqs: return set_irqs(message);
        case VfioUserCommand::kRegionRead: return region_read(*message);
        case VfioUserCommand::kRegionWrite: return region_write(*message);
        case VfioUserCommand::kRegionWriteMulti: return region_write_multi(*message);
        case VfioUserCommand::kDeviceReset: return message->body.empty() ? device_reset() : Answer{EINVAL, {}, -1};
        case VfioUserCommand::kVersion: return {EINVAL, {}, -1};  // once is enough
        case VfioUserCommand::kDeviceGetRegionIoFds: break;       // an optional shortcut through KVM; messages do
    }
    return {EOPNOTSUPP, {}, -1};
}

VfioUserCommands::Answer VfioUserCommands::dma_map(VfioUserMessage* message) {
    VfioUserDmaMap map;
    constexpr uint32_t kFlags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    if (!parse(*message, &map) || map.argsz < sizeof map || message->fds.size() > 1) return {EINVAL, {}, -1};
    if ((map.flags & ~kFlags) != 0 || (map.flags & VFIO_DMA_MAP_FLAG_READ) == 0) return {EINVAL, {}, -1};
    if (memory_->overlaps(map.address, map.size)) return {EEXIST, {}, -1};
    const bool is_ram_without_file = message->fds.empty() && map.address == 0 && (map.flags & VFIO_DMA_MAP_FLAG_WRITE) != 0;
    if (is_ram_without_file && !std::exchange(named_missing_ram_, true)) {
        EFA_LOG(kWarn, "pci", "the guest's RAM came without a file, so the device cannot reach it; hint: give QEMU -object "
                "memory-backend-memfd,id=ram0,share=on,size=... and -M memory-backend=ram0");
    }
    const int fd = message->fds.empty() ? -1 : message->fds[0].release();
    const Status status = memory_->add_range(map.address, map.size, fd, map.offset, (map.flags & VFIO_DMA_MAP_FLAG_WRITE) != 0);
    if (status.ok()) return {};
    if (refusals_ < kRefusalsLogged) EFA_LOG(kWarn, "pci", "%s", status.message());
    return {status.code() == Code::kResource ? ENOMEM : EINVAL, {}, -1};
}

VfioUserCommands::Answer VfioUserCommands::dma_unmap(const VfioUserMessage& message) {
    VfioUserDmaUnmap unmap;
    if (!parse(message, &unmap) || unmap.argsz < sizeof unmap) return {EINVAL, {}, -1};
    if (unmap.flags == VFIO_DMA_UNMAP_FLAG_ALL) {
        if (unmap.address != 0 || unmap.size != 0) return {EINVAL, {}, -1};
        memory_->remove_all();
    } else if (unmap.flags != 0) {
        return {EOPNOTSUPP, {}, -1};  // dirty pages: no migration
    } else if (const Status status = memory_->remove_range(unmap.address, unmap.size); !status.ok()) {
        return {ENOENT, {}, -1};
    }
    return {0, bytes_of(unmap), -1};
}

VfioUserCommands::Answer VfioUserCommands::device_info(const VfioUserMessage& message) const {
    VfioUserDeviceInfo info;
    if (!parse(message, &info) || info.argsz < sizeof info) return {EINVAL, {}, -1};
    return {0, bytes_of(VfioUserDeviceInfo{sizeof info, VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET, kRegions, kIrqTypes}), -1};
}

VfioUserCommands::Answer VfioUserCommands::region_info(const VfioUserMessage& message) const {
    VfioUserRegionInfo info;
    if (!parse(message, &info) || info.argsz < sizeof info || info.index >= kRegions) return {EINVAL, {}, -1};
    Answer answer;
    const uint32_t index = info.index;
    info = VfioUserRegionInfo{sizeof info, 0, index, 0, 0, 0};
    if (index == VFIO_PCI_CONFIG_REGION_INDEX) info.size = kConfigBytes;
    if (index < kBars) {
        info.size = function_->identity().bars[index].bytes;
        answer.fd = info.size ? function_->identity().bars[index].fd : -1;
    }
    if (info.size) info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    if (answer.fd >= 0) info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    answer.body = bytes_of(info);
    return answer;
}

VfioUserCommands::Answer VfioUserCommands::irq_info(const VfioUserMessage& message) const {
    VfioUserIrqInfo info;
    if (!parse(message, &info) || info.argsz < sizeof info || info.index >= kIrqTypes) return {EINVAL, {}, -1};
    const bool is_msix = info.index == VFIO_PCI_MSIX_IRQ_INDEX;
    info = {sizeof info, is_msix ? VFIO_IRQ_INFO_EVENTFD : 0u, info.index, is_msix ? vectors_.count() : 0};
    return {0, bytes_of(info), -1};
}

VfioUserCommands::Answer VfioUserCommands::set_irqs(VfioUserMessage* message) {
    VfioUserIrqSet set;
    size_t rest = 0;
    if (!parse_start(*message, &set, &rest) || set.argsz < sizeof set || set.index >= kIrqTypes) return {EINVAL, {}, -1};
    const uint32_t vectors = set.index == VFIO_PCI_MSIX_IRQ_INDEX ? vectors_.count() : 0;
    if (set.start > vectors || set.count > vectors - set.start) return {EINVAL, {}, -1};
    const uint32_t data = set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK, action = set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if ((data | action) != set.flags || rest != (data == VFIO_IRQ_SET_DATA_BOOL ? set.count : 0)) return {EINVAL, {}, -1};
    if (data == VFIO_IRQ_SET_DATA_EVENTFD) {
        if (action != VFIO_IRQ_SET_ACTION_TRIGGER) return {EINVAL, {}, -1};
        return {vectors_.set_eventfds(set.start, set.count, &message->fds), {}, -1};
    }
    const bool is_known_action =
        action == VFIO_IRQ_SET_ACTION_TRIGGER || action == VFIO_IRQ_SET_ACTION_MASK || action == VFIO_IRQ_SET_ACTION_UNMASK;
    const bool is_known_data = data == VFIO_IRQ_SET_DATA_NONE || data == VFIO_IRQ_SET_DATA_BOOL;
    if (!message->fds.empty() || !is_known_action || !is_known_data) return {EINVAL, {}, -1};
    if (set.count == 0 && data == VFIO_IRQ_SET_DATA_NONE && action == VFIO_IRQ_SET_ACTION_TRIGGER && vectors > 0) {
        vectors_.clear();  // the guest has switched MSI-X off
        return {};
    }
    for (uint32_t i = 0; i < set.count; ++i) {
        if (data == VFIO_IRQ_SET_DATA_BOOL && message->body[sizeof set + i] == 0) continue;
        if (action == VFIO_IRQ_SET_ACTION_TRIGGER) {
            vectors_.raise(set.start + i);
        } else {
            vectors_.set_masked(set.start + i, action == VFIO_IRQ_SET_ACTION_MASK);
        }
    }
    return {};
}

// Registers are reached as the instruction set reaches them; a guest's access that is not of this kind gets nothing.
int VfioUserCommands::bar_error(const VfioUserRegionAccess& access) const {
    if (access.region >= kBars) return EINVAL;
    const uint64_t bar_bytes = function_->identity().bars[access.region].bytes;
    const bool is_register = access.count == 1 || access.count == 2 || access.count == 4 || access.count == 8;
    if (!is_register || access.offset % access.count != 0) return EINVAL;
    return access.offset >= bar_bytes || access.count > bar_bytes - access.offset ? EINVAL : 0;
}

bool VfioUserCommands::is_msix_place(const VfioUserRegionAccess& access) const {
    const PciIdentity& identity = function_->identity();
    if (identity.msix_vectors == 0 || access.region != static_cast<uint32_t>(identity.msix_bar)) return false;
    const uint64_t table_bytes = identity.msix_vectors * kMsixEntryBytes, pba_bytes = (identity.msix_vectors + 63u) / 64 * 8;
    const auto lies_in = [&](uint64_t start, uint64_t bytes) { return access.offset >= start && access.offset < start + bytes; };
    return lies_in(identity.msix_table_offset, table_bytes) || lies_in(identity.msix_pba_offset, pba_bytes);
}

// QEMU answers the guest's accesses to the table itself and asks here for the pending bits.
uint64_t VfioUserCommands::msix_read(const VfioUserRegionAccess& access) const {
    const PciIdentity& identity = function_->identity();
    if (access.offset - identity.msix_pba_offset >= (identity.msix_vectors + 63u) / 64 * 8) return 0;
    const uint64_t at = access.offset - identity.msix_pba_offset;
    return vectors_.pending(static_cast<uint32_t>(at / 8)) >> (at % 8 * 8);
}

VfioUserCommands::Answer VfioUserCommands::region_read(const VfioUserMessage& message) {
    VfioUserRegionAccess access;
    if (!parse(message, &access) || access.count > kVfioUserTransferMax) return {EINVAL, {}, -1};
    Answer answer{0, bytes_of(access), -1};
    answer.body.resize(sizeof access + access.count);
    uint8_t* to = answer.body.data() + sizeof access;
    if (access.region == VFIO_PCI_CONFIG_REGION_INDEX) {
        if (!config_.read(access.offset, to, access.count)) return {EINVAL, {}, -1};
        return answer;
    }
    if (const int error = bar_error(access)) return {error, {}, -1};
    const uint64_t value = is_msix_place(access) ? msix_read(access)
                                                 : function_->bar_read(static_cast<int>(access.region), access.offset, access.count);
    std::memcpy(to, &value, access.count);
    return answer;
}

int VfioUserCommands::write(const VfioUserRegionAccess& access, const uint8_t* data) {
    if (access.region == VFIO_PCI_CONFIG_REGION_INDEX) {
        bool wants_reset = false;
        if (!config_.write(access.offset, data, access.count, &wants_reset)) return EINVAL;
        if (wants_reset) function_->reset();
        return 0;
    }
    if (const int error = bar_error(access)) return error;
    if (is_msix_place(access)) return 0;
    uint64_t value = 0;
    std::memcpy(&value, data, access.count);
    function_->bar_write(static_cast<int>(access.region), access.offset, value, access.count);
    return 0;
}

VfioUserCommands::Answer VfioUserCommands::region_write(const VfioUserMessage& message) {
    VfioUserRegionAccess access;
    size_t rest = 0;
    if (!parse_start(message, &access, &rest) || access.count > kVfioUserTransferMax || rest != access.count) return {EINVAL, {}, -1};
    if (const int error = write(access, message.body.data() + sizeof access)) return {error, {}, -1};
    return {0, bytes_of(access), -1};
}

VfioUserCommands::Answer VfioUserCommands::region_write_multi(const VfioUserMessage& message) {
    uint64_t count = 0;
    size_t rest = 0;
    if (!parse_start(message, &count, &rest) || count != rest / sizeof(VfioUserMultiWrite) || rest % sizeof(VfioUserMultiWrite) != 0) {
        return {EINVAL, {}, -1};
    }
    for (uint64_t i = 0; i < count; ++i) {
        VfioUserMultiWrite one;
        std::memcpy(&one, message.body.data() + sizeof count + i * sizeof one, sizeof one);
        if (one.access.count > sizeof one.data) return {EINVAL, {}, -1};
        if (const int error = write(one.access, one.data)) return {error, {}, -1};
    }
    return {0, bytes_of(count), -1};
}

VfioUserCommands::Answer VfioUserCommands::device_reset() {
    config_.reset();
    function_->reset();
    return {};
}

void VfioUserCommands::raise(uint32_t vector) {
    if (config_.msix_enabled()) vectors_.raise(vector);
}

void VfioUserCommands::end_client() {
    function_->reset();
    memory_->remove_all();
    vectors_.clear();
    config_.reset();
    has_version_ = false;
    refusals_ = 0;
    named_missing_ram_ = false;
}

}  // namespace nvshmem_efa::soft::pci
