// SPDX-License-Identifier: Apache-2.0
// Devices of one process, on one thread: a packet is handed over inside send(). For the virtual clock and for tests.
#pragma once

#include <vector>

#include "device.h"
#include "wire.h"

namespace nvshmem_efa::soft {

class InprocWire final : public Wire {
   public:
    // `now_ns` is read at every packet; `seed` feeds the refusals.
    InprocWire(const uint64_t* now_ns, uint64_t seed) : now_ns_(now_ns), prng_(seed) {}
    void add(Device* device) { devices_.push_back(device); }
    void remove(const Device* device) { std::erase(devices_, device); }
    // That many sends per million find no room, as on a wire that is full.
    void set_refusals(uint32_t ppm) { refusals_ppm_ = ppm; }
    // The device's host is gone: packets to it vanish.
    void set_gone(const Gid& gid) { gone_.push_back(gid); }

    Status connect(const PeerAddress& peer) override;
    bool send(const PacketHeader& header, const void* payload) override;
    size_t poll(const Deliver&, size_t) override { return 0; }
    bool is_gone(const Gid& peer) const override;

   private:
    Device* find(const Gid& gid) const;
    const uint64_t* now_ns_;
    Prng prng_;
    uint32_t refusals_ppm_ = 0;
    std::vector<Device*> devices_;
    std::vector<Gid> gone_;
};

}  // namespace nvshmem_efa::soft
