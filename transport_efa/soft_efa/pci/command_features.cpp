// SPDX-License-Identifier: Apache-2.0
// What the device says of itself, and what the driver tells it.
#include "log.h"
#include "soft_efa/pci/commands.h"
#include "soft_efa/pci/efa_admin_features.h"
#include "soft_efa/pci/efa_regs.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint32_t kFirmwareVersion = 1, kAdminVersion = 1, kDeviceVersion = 1;
constexpr uint16_t kAddressBits = 64;
constexpr uint16_t kRdmaSgesMax = 1;

constexpr uint64_t bit_of(Feature feature) { return 1ull << static_cast<uint8_t>(feature); }

// Any number that differs between devices: from the GID, which does.
uint64_t guid_of(const Gid& gid) {
    uint64_t halves[2];
    std::memcpy(halves, gid.raw, sizeof halves);
    return halves[0] ^ halves[1];
}

// A guest's text, up to its NUL, for the log: no line breaks or control characters of its choice.
template <size_t N>
std::string printable(const char (&text)[N]) {
    std::string clean(text, strnlen(text, N));
    for (char& one : clean) {
        if (one < ' ' || one > '~') one = '?';
    }
    return clean;
}

}  // namespace

bool Commands::has_feature(Feature feature) const {
    switch (feature) {
        case Feature::kQueueAttr2: return device_.caps().max_inline_large != 0 || device_.caps().completion_counters;
        case Feature::kEventQueueAttr: return parts_.profile.pci.max_eqs != 0;
        case Feature::kDeviceAttr:
        case Feature::kAenqConfig:
        case Feature::kNetworkAttr:
        case Feature::kQueueAttr1:
        case Feature::kHwHints:
        case Feature::kHostInfo: return true;
    }
    return false;
}

DeviceAttr Commands::device_attr() const {
    const NicCaps& caps = device_.caps();
    DeviceAttr attr{};
    for (int feature = 0; feature < 64; ++feature) {
        if (has_feature(static_cast<Feature>(feature))) attr.features |= 1ull << feature;
    }
    attr.page_sizes = parts_.profile.pci.page_sizes;
    attr.firmware_version = kFirmwareVersion;
    attr.admin_version = kAdminVersion;
    attr.device_version = kDeviceVersion;
    attr.doorbell_bar = kDoorbellBar;
    attr.physical_bits = attr.virtual_bits = kAddressBits;
    attr.device_caps = (caps.rdma_read ? kDeviceRdmaRead : 0) | (caps.rdma_write ? kDeviceRdmaWrite : 0) |
                       (caps.rnr_retry ? kDeviceRnrRetry : 0) | (caps.data_polling_128 ? kDeviceDataPolling128 : 0) |
                       (caps.unsolicited_write_recv ? kDeviceUnsolicited : 0) |
                       (caps.completion_counters ? kDeviceEventCounters : 0) | (caps.req_id_64 ? kDeviceReqId64 : 0);
    attr.max_rdma_bytes = static_cast<uint32_t>(std::min<uint64_t>(caps.max_rdma_bytes, UINT32_MAX));
    attr.guid = guid_of(device_.gid());
    attr.link_gbps = parts_.profile.pci.link_gbps;
    return attr;
}

QueueAttr1 Commands::queue_attr_1() const {
    const NicCaps& caps = device_.caps();
    const PciShape& shape = parts_.profile.pci;
    QueueAttr1 attr{};
    attr.max_qps = caps.max_qps - 1;
    attr.max_sq_depth = caps.max_sq_depth;
    attr.inline_bytes = caps.max_inline_small;
    attr.max_rq_depth = caps.max_rq_depth;
    attr.max_cqs = shape.max_cqs;
    attr.max_cq_depth = std::min<uint32_t>(caps.max_cq_depth, shape.max_sub_cq_depth);
    attr.sub_cqs_per_cq = shape.sub_cqs_per_cq;
    attr.min_sq_depth = shape.min_sq_depth;
    attr.max_send_sges = kSendSgesMax;
    attr.max_recv_sges = kRecvSgesMax;
    attr.max_mrs = caps.max_mrs;
    attr.max_mr_pages = shape.max_mr_pages;
    attr.max_pds = shape.max_pds;
    attr.max_ahs = parts_.profile.ahs_max;
    attr.max_sq_bytes = caps.max_sq_depth * kSlotBytesSmall;
    attr.max_rdma_sges = kRdmaSgesMax;
    attr.max_tx_batch = static_cast<uint16_t>(caps.max_tx_batch_units);
    return attr;
}

QueueAttr2 Commands::queue_attr_2() const {
    const NicCaps& caps = device_.caps();
    QueueAttr2 attr{};
    attr.inline_bytes = static_cast<uint16_t>(caps.max_inline_large ? caps.max_inline_large : caps.max_inline_small);
    if (caps.completion_counters) {
        attr.counter_events = kQpEventsMask;
        attr.max_counters = 2 * parts_.profile.caps.max_counters;  // the driver makes one of verbs from two of these
        attr.counter_max = EventCounters::kValueMax;
    }
    return attr;
}

AdminStatus Commands::get_feature(const FeatureCommand& command, AdminReply* reply) {
    const auto feature = static_cast<Feature>(command.feature);
    if (command.reserved0 || command.reserved) return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    if (!has_feature(feature)) return refuse(AdminStatus::kUnsupportedOpcode, "no feature %u", command.feature);
    switch (feature) {
        case Feature::kDeviceAttr: reply->set(device_attr()); return AdminStatus::kSuccess;
        case Feature::kQueueAttr1: reply->set(queue_attr_1()); return AdminStatus::kSuccess;
        case Feature::kQueueAttr2: reply->set(queue_attr_2()); return AdminStatus::kSuccess;
        case Feature::kAenqConfig: reply->set(AenqConfig{kAenqGroups, aenq_groups_}); return AdminStatus::kSuccess;
        // All zero. A hint for the admin timeout would be taken as microseconds, though it is given in milliseconds.
        case Feature::kHwHints: reply->set(HwHints{}); return AdminStatus::kSuccess;
        case Feature::kEventQueueAttr:
            reply->set(EventQueueAttr{parts_.profile.pci.max_eqs, parts_.profile.pci.max_eq_depth, kEventOfCompletion});
            return AdminStatus::kSuccess;
        case Feature::kNetworkAttr: {
            NetworkAttr attr{};
            std::memcpy(attr.addr, device_.gid().raw, sizeof attr.addr);
            attr.mtu = device_.caps().mtu;
            reply->set(attr);
            return AdminStatus::kSuccess;
        }
        case Feature::kHostInfo: break;
    }
    return refuse(AdminStatus::kIllegalParameter, "feature %u can only be set", command.feature);
}

AdminStatus Commands::set_feature(const FeatureCommand& command, uint8_t flags) {
    const auto feature = static_cast<Feature>(command.feature);
    if (command.reserved0 || command.reserved) return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    if (!has_feature(feature)) return refuse(AdminStatus::kUnsupportedOpcode, "no feature %u", command.feature);
    if (feature == Feature::kAenqConfig) {
        AenqConfig config;
        std::memcpy(&config, command.data, sizeof config);
        if (config.enabled & ~kAenqGroups)
            return refuse(AdminStatus::kIllegalParameter, "event groups 0x%x", config.enabled);
        aenq_groups_ = config.enabled;
        return AdminStatus::kSuccess;
    }
    if (feature == Feature::kHostInfo) {
        HostInfo info{};
        if (!(flags & kAdminHasControlData) || command.control.bytes < sizeof info)
            return refuse(AdminStatus::kMalformedRequest, "host information without its buffer");
        if (!parts_.memory->read(command.control.addr(), &info, sizeof info))
            return refuse(AdminStatus::kMalformedRequest, "host information outside of RAM");
        EFA_LOG(kInfo, "pci", "%s: driven by kernel %s", device_.name().c_str(), printable(info.os).c_str());
        return AdminStatus::kSuccess;
    }
    return refuse(AdminStatus::kIllegalParameter, "feature %u cannot be set", command.feature);
}

}  // namespace nvshmem_efa::soft::pci
