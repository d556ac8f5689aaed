// SPDX-License-Identifier: Apache-2.0
#include "status.h"

#include <set>

#include "check.h"

using namespace nvshmem_efa;

namespace {

Status fails() { return Status::error(Code::kPeer, "look at PE 3", "PE %d does not answer", 3); }

Status calls_it() {
    EFA_TRY(fails());
    return {};
}

}  // namespace

TEST(a_good_status_is_one_null_pointer) {
    CHECK_EQ(sizeof(Status), sizeof(void*));
    Status status;
    CHECK(status.ok());
    CHECK_EQ(status.code(), Code::kOk);
    CHECK_EQ(std::string(status.message()), "ok");
}

TEST(an_error_keeps_code_message_and_hint) {
    const Status status = fails();
    CHECK(!status.ok());
    CHECK_EQ(status.code(), Code::kPeer);
    CHECK_EQ(std::string(status.message()), "PE 3 does not answer; hint: look at PE 3");
}

TEST(an_error_without_a_hint_ends_with_the_message) {
    CHECK_EQ(std::string(Status::error(Code::kInternal, nullptr, "odd").message()), "odd");
}

TEST(a_caller_puts_what_it_knows_before_the_message) {
    Status status = fails().with_context("put of 8 bytes");
    CHECK_EQ(std::string(status.message()), "put of 8 bytes: PE 3 does not answer; hint: look at PE 3");
    CHECK(Status().with_context("nothing").ok());
}

TEST(efa_try_returns_the_failure_unchanged) {
    CHECK_FAILS(calls_it(), Code::kPeer, "PE 3 does not answer; hint: look at PE 3");
}

TEST(every_code_has_a_name_of_its_own) {
    std::set<std::string> names;
    for (int code = 0; code <= 14; ++code) names.insert(code_name(static_cast<Code>(code)));
    CHECK_EQ(names.size(), 15u);
    CHECK_EQ(names.count("unknown"), 0u);
    CHECK_EQ(std::string(code_name(static_cast<Code>(99))), "unknown");
}

TEST_MAIN()
