// SPDX-License-Identifier: Apache-2.0
#include "profile.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace nvshmem_efa::soft {
namespace {

// What all generations with RDMA write share.
NicCaps common_caps() {
    NicCaps caps;
    caps.rdma_read = true;
    caps.rdma_write = true;
    caps.max_sq_depth = 4096;  // 256 KiB of queue memory in 64-byte slots
    caps.max_rq_depth = 32768;
    caps.max_cq_depth = 65536;
    caps.max_inline_small = kInlineSendSmallMax;
    caps.max_tx_batch_units = 16;
    // A SEND is one packet, so the packet's payload bounds it. The device's packets carry about 8 KiB; verbs shows
    // 4096 only because its enumeration ends there.
    caps.mtu = 8192;
    caps.max_rdma_bytes = 1ull << 30;
    caps.max_qps = 1024;
    caps.max_mrs = 65535;
    return caps;
}

Profile make_efa2() {
    Profile profile;
    profile.name = "efa2";
    profile.caps = common_caps();
    profile.cqe_bytes = 16;
    profile.ahs_max = 8192;
    profile.timing = Timing{17000, 3000, 500, 200, 12500};
    return profile;
}

Profile make_efa3() {
    Profile profile = make_efa2();
    profile.name = "efa3";
    profile.cqe_bytes = 32;
    profile.caps.rnr_retry = true;
    profile.caps.unsolicited_write_recv = true;
    profile.caps.cq_sgid = true;
    profile.caps.cq_ext_mem = true;
    profile.caps.inline_write = true;
    profile.caps.req_id_64 = true;
    profile.caps.max_inline_large = kInlineLargeMax;
    profile.caps.completion_counters = true;
    profile.caps.max_counters = 512;
    profile.timing = Timing{15000, 3000, 500, 125, 25000};
    profile.pci.device_id = 0xefa3;
    profile.pci.admin_minor = 2;
    profile.pci.link_gbps = 200;
    return profile;
}

Profile make_efa4() {
    Profile profile = make_efa3();
    profile.name = "efa4";
    profile.caps.data_polling_128 = true;
    profile.timing = Timing{14600, 2200, 500, 83, 48750};
    profile.pci.device_id = 0xefa4;
    profile.pci.admin_minor = 3;
    profile.pci.link_gbps = 400;
    return profile;
}

}  // namespace

Status find_profile(const char* name, Profile* profile) {
    if (std::strcmp(name, "efa2") == 0) {
        *profile = make_efa2();
    } else if (std::strcmp(name, "efa3") == 0) {
        *profile = make_efa3();
    } else if (std::strcmp(name, "efa4") == 0) {
        *profile = make_efa4();
    } else {
        return Status::error(Code::kConfig, "set NVSHMEM_EFA_SOFT_PROFILE to efa2, efa3 or efa4",
                             "no software EFA profile is called \"%s\"", name);
    }
    return Status();
}

Status remove_capabilities(const std::string& names, NicCaps* caps) {
    const struct {
        const char* name;
        bool* flag;
    } known[] = {{"rdma_read", &caps->rdma_read},
                 {"rdma_write", &caps->rdma_write},
                 {"rnr_retry", &caps->rnr_retry},
                 {"unsolicited", &caps->unsolicited_write_recv},
                 {"inline_write", &caps->inline_write},
                 {"req_id_64", &caps->req_id_64},
                 {"counters", &caps->completion_counters},
                 {"data_polling_128", &caps->data_polling_128}};
    for (size_t at = 0; at < names.size();) {
        const size_t end = std::min(names.find(',', at), names.size());
        const std::string name = names.substr(at, end - at);
        at = end + 1;
        const auto found = std::find_if(std::begin(known), std::end(known), [&](const auto& one) { return name == one.name; });
        if (found == std::end(known))
            return Status::error(Code::kConfig, "soft_efa/profile.h lists them", "no capability is called \"%s\"",
                                 name.c_str());
        *found->flag = false;
    }
    if (!caps->inline_write) caps->max_inline_large = 0;
    if (!caps->completion_counters) caps->max_counters = 0;
    return Status();
}

}  // namespace nvshmem_efa::soft
