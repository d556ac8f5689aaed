// SPDX-License-Identifier: Apache-2.0
// Admin commands that ask the device what it is and tell it who drives it: features and statistics.
// Source of layouts: efa_admin_cmds_defs.h of the Linux driver.
#pragma once

#include "soft_efa/pci/efa_admin.h"

namespace nvshmem_efa::soft::pci {

enum class Feature : uint8_t {
    kDeviceAttr = 1,
    kAenqConfig = 2,
    kNetworkAttr = 3,
    kQueueAttr1 = 4,
    kHwHints = 5,
    kHostInfo = 6,
    kEventQueueAttr = 7,
    kQueueAttr2 = 9,
};

#pragma pack(push, 1)

struct FeatureCommand {  // get and set
    GuestBuffer control;
    uint8_t reserved0;
    uint8_t feature;
    uint16_t reserved;
    uint32_t data[11];
};
static_assert(sizeof(FeatureCommand) == 60 && offsetof(FeatureCommand, data) == 16);

// device_caps
inline constexpr uint32_t kDeviceRdmaRead = 1u << 0, kDeviceRnrRetry = 1u << 1, kDeviceDataPolling128 = 1u << 2,
                          kDeviceRdmaWrite = 1u << 3, kDeviceUnsolicited = 1u << 4, kDeviceEventCounters = 1u << 5,
                          kDeviceReqId64 = 1u << 10;

struct DeviceAttr {
    uint64_t features;    // one bit per Feature
    uint64_t page_sizes;  // one bit per size
    uint32_t firmware_version;
    uint32_t admin_version;
    uint32_t device_version;
    uint16_t doorbell_bar;
    uint8_t physical_bits;
    uint8_t virtual_bits;
    uint32_t device_caps;
    uint32_t max_rdma_bytes;
    uint64_t guid;
    uint16_t link_gbps;
    uint16_t reserved0;
    uint32_t reserved1;
};
static_assert(sizeof(DeviceAttr) == 56 && offsetof(DeviceAttr, device_caps) == 32 && offsetof(DeviceAttr, guid) == 40);

struct QueueAttr1 {
    uint32_t max_qps;
    uint32_t max_sq_depth;
    uint32_t inline_bytes;
    uint32_t max_rq_depth;
    uint32_t max_cqs;
    uint32_t max_cq_depth;
    uint16_t sub_cqs_per_cq;
    uint16_t min_sq_depth;
    uint16_t max_send_sges;
    uint16_t max_recv_sges;
    uint32_t max_mrs;
    uint32_t max_mr_pages;
    uint32_t max_pds;
    uint32_t max_ahs;
    uint32_t max_sq_bytes;  // of a send queue in the BAR
    uint16_t max_rdma_sges;
    uint16_t max_tx_batch;  // units of 64 bytes
};
static_assert(sizeof(QueueAttr1) == 56 && offsetof(QueueAttr1, sub_cqs_per_cq) == 24);
static_assert(offsetof(QueueAttr1, max_mrs) == 32 && offsetof(QueueAttr1, max_rdma_sges) == 52);

struct QueueAttr2 {
    uint16_t inline_bytes;  // of 128-byte slots
    uint8_t reserved[6];
    uint32_t counter_events;
    uint32_t max_counters;
    uint64_t counter_max;  // wraps to 0 after it
};
static_assert(sizeof(QueueAttr2) == 24 && offsetof(QueueAttr2, counter_events) == 8);

struct EventQueueAttr {
    uint32_t max_eqs;
    uint32_t max_eq_depth;
    uint32_t events;
};
static_assert(sizeof(EventQueueAttr) == 12);

struct AenqConfig {
    uint32_t supported;
    uint32_t enabled;
};
static_assert(sizeof(AenqConfig) == 8);

struct NetworkAttr {
    uint8_t addr[16];  // the GID
    uint32_t mtu;
};
static_assert(sizeof(NetworkAttr) == 20);

struct HwHints {  // 0: the driver's own values
    uint16_t register_read_ms;
    uint16_t watchdog_ms;
    uint16_t admin_ms;
    uint16_t poll_ms;
};
static_assert(sizeof(HwHints) == 8);

struct HostInfo {  // in the control buffer of SET_FEATURE
    char os[128];
    uint32_t os_type;
    char kernel[32];
    uint32_t kernel_version;
    uint32_t driver_version;
    uint16_t bus_device_function;
    uint16_t spec_version;
    uint32_t flags;
};
static_assert(sizeof(HostInfo) == 180);

enum class StatsType : uint8_t { kBasic = 0, kMessages = 1, kRdmaRead = 2, kRdmaWrite = 3, kNetwork = 4 };
inline constexpr uint8_t kStatsOfAll = 0, kStatsOfQueue = 1;

struct StatsCommand {
    GuestBuffer control;
    uint8_t type;
    uint8_t scope;
    uint16_t queue;
};
static_assert(sizeof(StatsCommand) == 16);

struct BasicStats {
    uint64_t tx_bytes, tx_packets, rx_bytes, rx_packets, rx_drops, qkey_violations;
};
struct MessageStats {
    uint64_t send_bytes, sends, recv_bytes, recvs;
};
struct RdmaReadStats {
    uint64_t reads, read_bytes, read_errors, response_bytes;
};
struct RdmaWriteStats {
    uint64_t writes, write_bytes, write_errors, received_bytes;
};
struct NetworkStats {
    uint64_t repeated_bytes, repeated_packets, timeouts, unresponsive, impaired;
};
static_assert(sizeof(BasicStats) == 48 && sizeof(MessageStats) == 32 && sizeof(RdmaReadStats) == 32);
static_assert(sizeof(RdmaWriteStats) == 32 && sizeof(NetworkStats) == 40);

#pragma pack(pop)

}  // namespace nvshmem_efa::soft::pci
