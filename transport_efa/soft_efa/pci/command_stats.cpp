// SPDX-License-Identifier: Apache-2.0
// Statistics of the whole device, from the model's.
#include "soft_efa/pci/commands.h"
#include "soft_efa/pci/efa_admin_features.h"

namespace nvshmem_efa::soft::pci {

AdminStatus Commands::get_stats(const StatsCommand& command, AdminReply* reply) {
    if (command.scope != kStatsOfAll)
        return refuse(AdminStatus::kIllegalParameter, "statistics of scope %u", command.scope);
    const SoftStats& stats = device_.stats();
    const auto failed = [&stats](CqeStatus status) { return stats.by_status[static_cast<uint8_t>(status)]; };
    switch (static_cast<StatsType>(command.type)) {
        case StatsType::kBasic: {
            BasicStats body{};
            body.tx_bytes = stats.bytes_sent;
            body.tx_packets = stats.packets_sent;
            body.rx_bytes = stats.bytes_placed;
            body.rx_packets = stats.packets_received;
            body.rx_drops = stats.packets_refused;
            reply->set(body);
            return AdminStatus::kSuccess;
        }
        case StatsType::kMessages:
            reply->set(MessageStats{stats.send_bytes, stats.sends, stats.recv_bytes, stats.recvs});
            return AdminStatus::kSuccess;
        case StatsType::kRdmaRead:
            reply->set(RdmaReadStats{stats.reads, stats.read_bytes, stats.read_errors, stats.read_response_bytes});
            return AdminStatus::kSuccess;
        case StatsType::kRdmaWrite:
            reply->set(RdmaWriteStats{stats.writes, stats.write_bytes, stats.write_errors, stats.write_recv_bytes});
            return AdminStatus::kSuccess;
        case StatsType::kNetwork: {
            NetworkStats body{};
            body.timeouts = body.unresponsive = failed(CqeStatus::kUnrespRemote);
            reply->set(body);
            return AdminStatus::kSuccess;
        }
    }
    return refuse(AdminStatus::kIllegalParameter, "no statistics of type %u", command.type);
}

}  // namespace nvshmem_efa::soft::pci
