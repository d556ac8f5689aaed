// SPDX-License-Identifier: Apache-2.0
// Two PEs in this process, a device each: whole transports with agents, and posters through relay and direct rings.
#include "device_rig.h"
#include "gpu_lane_traffic.h"

using namespace device;

namespace {

void run_on_devices(const char* mode, const char* kind) {
    std::vector<std::string> names;
    for (const auto& nic : open_devices(2)) names.push_back(nic->info().name);
    Knobs knobs = gpu_lane_rig::default_knobs();
    knobs.mode = mode;
    gpu_lane_rig::open_nics = [names](int pe, const Knobs&) {
        gpu_lane_rig::Nics nics;
        OpenOptions options;
        options.device_filter = names[static_cast<size_t>(pe)];
        CHECK_OK(open_verbs_nics(options, &nics));
        return nics;
    };
    gpu_lane_rig::Job job(2, knobs, gpu_lane_rig::Traffic::kWords * 8);
    std::printf("     %s\n", job.pes[0].transport->describe().c_str());
    gpu_lane_rig::run_traffic(job, kind);
}

}  // namespace

TEST(a_job_in_mode_relay_carries_what_its_threads_post) { run_on_devices("relay", "relay queues"); }

TEST(a_job_in_mode_direct_carries_what_its_threads_post) {
    if (!open_devices(2).front()->info().caps.completion_counters) SKIP("no completion counters");
    run_on_devices("direct", "direct (counters in host memory) queues");
}
