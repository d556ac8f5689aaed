// SPDX-License-Identifier: Apache-2.0
// Every call of a whole life fails once, at every place where it is made: each failure is a named error or a named
// degradation, and nothing is left.
#include <set>

#include "verbs_rig.h"

using namespace nvshmem_efa;
using fake::Rig;
using fake::state;

namespace {

char memory[4096];

// Opens two devices and makes one of everything. The first error ends it.
Status live(Rig& rig) {
    EFA_TRY(rig.open_all());
    Nic& nic = *rig.nics[1];
    MemoryRegion host, gpu;
    EFA_TRY(nic.register_memory({memory, sizeof(memory)}, &host));
    EFA_TRY(nic.register_memory({memory, sizeof(memory), MemoryKind::kCuda, kAccessRemoteWrite}, &gpu));
    Cq send, recv;
    EFA_TRY(nic.create_cq({.depth = 64}, &send));
    EFA_TRY(nic.create_cq({.depth = 64, .memory = memory, .memory_bytes = sizeof(memory)}, &recv));
    QpAttr attr;
    attr.send_cq = send.handle;
    attr.recv_cq = recv.handle;
    attr.sq_depth = attr.rq_depth = 32;
    Qp qp;
    EFA_TRY(nic.create_qp(attr, &qp));
    PeerAddress peer;
    peer.gid.raw[0] = 9;
    AddressHandle ah;
    EFA_TRY(nic.create_address_handle(peer, &ah));
    static uint64_t words[2];
    uint64_t counter = 0;
    EFA_TRY(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    EFA_TRY(nic.attach_counter(qp.handle, counter, kCountWrite));
    EFA_TRY(nic.destroy_qp(qp.handle));
    EFA_TRY(nic.destroy_counter(counter));
    EFA_TRY(nic.destroy_address_handle(ah));
    EFA_TRY(nic.destroy_cq(recv.handle));
    EFA_TRY(nic.destroy_cq(send.handle));
    EFA_TRY(nic.deregister_memory(gpu));
    return nic.deregister_memory(host);
}

// A failure that is lived with: another way is taken, or a capability is not offered.
bool is_survived(const std::string& name) {
    return name == "ibv_reg_dmabuf_mr" || name == "ibv_query_qp_data_in_order" || name == "_ibv_query_comp_cntr_caps";
}

bool is_probe_end(const std::string& name, int nth) {
    return (name == "ibv_destroy_qp" || name == "ibv_destroy_cq") && nth < 2;  // the scratch queues of two devices
}

struct Attempt {
    std::string name;
    int nth;
};

// Every call that the life makes, but those whose failure nobody could act on.
std::vector<Attempt> every_call() {
    Rig rig(2);
    const Status status = live(rig);
    CHECK_OK(rig.nics.empty() ? Status::error(Code::kInternal, nullptr, "no nics") : Status());
    CHECK(status.ok());
    std::vector<Attempt> attempts;
    std::map<std::string, int> seen;
    for (const fake::Call& call : state().calls) {
        if (call.name != "ibv_free_device_list") attempts.push_back({call.name, seen[call.name]});
        ++seen[call.name];
    }
    return attempts;
}

}  // namespace

TEST(a_life_without_failures_makes_every_call_and_leaves_nothing) {
    {
        const std::vector<Attempt> attempts = every_call();
        std::set<std::string> names;
        for (const Attempt& attempt : attempts) names.insert(attempt.name);
        CHECK_EQ(names.size(), size_t(27));
        CHECK(attempts.size() > 50);
    }
    fake::check_nothing_left();
}

namespace {

// One failure: a named error, or for those that are lived with a named lack.
void check_failure(Rig& rig, const Attempt& attempt, int error) {
    rig.renew(2);
    state().failures[attempt.name] = {.error = error, .after = attempt.nth};
    const Status status = live(rig);
    const std::string where = attempt.name + " #" + std::to_string(attempt.nth) + " errno " + std::to_string(error);
    if (!state().failures.empty()) check::fail(__FILE__, __LINE__, where + " was never made");
    bool is_named = false;
    if (is_survived(attempt.name)) {
        is_named = status.ok() || status.code() == Code::kUnsupported;  // counters lost: the life ends at the counter
    } else {
        is_named = std::strstr(status.message(), attempt.name.c_str()) && std::strstr(status.message(), "hint:");
    }
    if (!is_named) check::fail(__FILE__, __LINE__, where + ": " + status.message());
    rig.nics.clear();
    fake::check_nothing_left();
}

}  // namespace

TEST(every_call_may_fail_at_every_place_and_nothing_is_left) {
    const std::vector<Attempt> attempts = every_call();
    Rig rig(2);
    for (const Attempt& attempt : attempts) {
        if (is_probe_end(attempt.name, attempt.nth)) continue;
        for (const int error : {5, 12, 22, 0}) check_failure(rig, attempt, error);
    }
}

TEST(a_destroy_that_fails_once_is_made_again_at_the_end) {
    for (const char* name :
         {"ibv_destroy_qp", "ibv_destroy_comp_cntr", "ibv_destroy_cq", "ibv_destroy_ah", "ibv_dereg_mr"}) {
        Rig rig(2);
        const bool has_probe = !std::strcmp(name, "ibv_destroy_qp") || !std::strcmp(name, "ibv_destroy_cq");
        state().failures[name] = {.error = 16, .after = has_probe ? 2 : 0};
        CHECK_FAILS(live(rig), Code::kDevice, "Device or resource busy");
        rig.nics.clear();
        fake::check_nothing_left();
    }
}

TEST(a_scratch_queue_that_cannot_be_destroyed_fails_the_open_by_name) {
    for (const char* name : {"ibv_destroy_qp", "ibv_destroy_cq"}) {
        Rig rig;
        state().failures[name] = {.error = 16};
        CHECK_FAILS(rig.open_all(), Code::kDevice, "while probing the device: ibv_destroy_");
        CHECK(rig.nics.empty());
        fake::forget_objects();  // the kernel kept what it would not give back
    }
}

TEST(a_failed_end_is_logged_and_does_not_stop_the_rest) {
    Rig rig;
    Nic& nic = rig.open_one();
    Cq cq;
    CHECK_OK(nic.create_cq({.depth = 16}, &cq));
    state().failures["ibv_destroy_cq"] = {.error = 5, .once = false};
    rig.nics.clear();
    CHECK_EQ(fake::joined(fake::call_names()),
             std::string("efadv_create_cq efadv_query_cq ibv_destroy_cq ibv_dealloc_pd ibv_close_device"));
    state().failures.clear();
    fake::forget_objects();
}

TEST_MAIN()
