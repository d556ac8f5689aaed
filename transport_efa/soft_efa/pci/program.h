// SPDX-License-Identifier: Apache-2.0
// nvshmem-efa-pci: one EFA function for one virtual machine, on one thread.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "efa_function.h"
#include "fabric_dir.h"
#include "soft_efa/device.h"
#include "soft_efa/process_wire.h"
#include "vfio_user.h"

namespace nvshmem_efa::soft::pci {

struct ProgramOptions {
    std::string socket;   // made by us, 0600
    std::string without;  // capabilities that the profile's device would have
    std::string fabric;   // folder shared with the other functions; empty: this function is alone
    bool shows_help = false;
    bool shows_version = false;
};

extern const char* const kUsage;
// Profile, seed and faults go to the knobs (NVSHMEM_EFA_SOFT_*), which the options override. kConfig names the option.
Status parse_arguments(int argc, char** argv, ProgramOptions* options);

// Where packets and interrupts go: the function's device on the process's wire.
class Program final : public FunctionHost {
   public:
    static Status create(const ProgramOptions& options, std::unique_ptr<Program>* program);
    // Serves until a signal of `stop` has come.
    Status run(const volatile int& stop);

    // FunctionHost
    void raise(uint32_t vector) override { server_->raise(vector); }
    Status find_peer(const Gid& gid) override;

   private:
    Program() = default;
    Status start(const ProgramOptions& options);
    bool turn();  // true when anything happened

    std::mutex lock_;  // what ProcessWire wants held; there is one thread
    std::unique_ptr<MemoryPort> memory_port_;
    std::unique_ptr<FabricDir> fabric_;
    std::unique_ptr<ProcessWire> wire_;
    Wire::Deliver deliver_;
    std::unique_ptr<Device> device_;
    GuestMemory guest_;
    std::unique_ptr<EfaFunction> function_;
    std::unique_ptr<VfioUserServer> server_;
    uint64_t now_ns_ = 0;
    uint64_t work_seen_ = 0;
    uint64_t idle_since_ns_ = 0;
};

}  // namespace nvshmem_efa::soft::pci
