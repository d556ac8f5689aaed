// SPDX-License-Identifier: Apache-2.0
// One opened device: its context and protection domain, what it can do, and its address. Closed on destruction.
#pragma once

#include <memory>
#include <string>

#include "fabric/fabric.h"
#include "fabric/verbs_library.h"

namespace nvshmem_efa::verbs {

class OpenDevice {
   public:
    ~OpenDevice();
    OpenDevice(const OpenDevice&) = delete;
    OpenDevice& operator=(const OpenDevice&) = delete;

    // Opens `device` and asks it everything; kUnsupported when it has no RDMA write.
    static Status open(std::shared_ptr<const VerbsLibrary> library, IbvDevice* device, const std::string& name,
                       std::unique_ptr<OpenDevice>* opened);

    const VerbsApi& api() const { return library_->api(); }
    IbvContext* context() const { return context_; }
    IbvPd* pd() const { return pd_; }
    const std::string& name() const { return name_; }
    const NicCaps& caps() const { return caps_; }
    const Gid& gid() const { return gid_; }
    uint32_t max_send_sges() const { return max_send_sges_; }

   private:
    OpenDevice(std::shared_ptr<const VerbsLibrary> library, const std::string& name)
        : library_(std::move(library)), name_(name) {}
    Status query();         // attributes of device and port
    Status query_counters();
    Status query_address();
    Status probe_queue();   // a scratch queue pair, for what only a queue tells
    Status check_minimum() const;
    void log_degradations() const;

    std::shared_ptr<const VerbsLibrary> library_;
    std::string name_;
    IbvContext* context_ = nullptr;
    IbvPd* pd_ = nullptr;
    NicCaps caps_;
    Gid gid_;
    uint32_t max_send_sges_ = 1;
};

}  // namespace nvshmem_efa::verbs
