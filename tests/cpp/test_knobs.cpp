// SPDX-License-Identifier: Apache-2.0
#include "knobs.h"

#include <cstdlib>

#include "check.h"
#include "log.h"

using namespace nvshmem_efa;

namespace {

struct Parsed {
    Status status;
    Knobs knobs;
    std::vector<std::string> warnings;
};

Parsed parse(std::vector<const char*> environment) {
    environment.push_back(nullptr);
    Parsed parsed;
    parsed.status = parse_knobs(environment.data(), &parsed.knobs, &parsed.warnings);
    return parsed;
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(an_empty_environment_gives_the_defaults_of_the_table) {
    const Parsed parsed = parse({});
    CHECK(parsed.status.ok());
    CHECK_EQ(parsed.knobs.mode, "auto");
    CHECK_EQ(parsed.knobs.timeout_ms, 30000);
    CHECK_EQ(parsed.knobs.fallback, "ibrc,ucx,libfabric");
    CHECK_EQ(parsed.warnings.size(), 0u);
}

TEST(an_empty_value_counts_as_unset) {
    const Parsed parsed = parse({"NVSHMEM_EFA_MODE=", "NVSHMEM_EFA_RAILS=", "NVSHMEM_EFA_FALLBACK="});
    CHECK(parsed.status.ok());
    CHECK_EQ(parsed.knobs.mode, "auto");
    CHECK_EQ(parsed.knobs.rails, 0);
    CHECK_EQ(parsed.knobs.fallback, "ibrc,ucx,libfabric");
}

TEST(numbers_are_decimal_or_hex_with_binary_suffixes) {
    CHECK_EQ(parse({"NVSHMEM_EFA_STRIPE_BYTES=65536"}).knobs.stripe_bytes, 65536);
    CHECK_EQ(parse({"NVSHMEM_EFA_STRIPE_BYTES=0x10000"}).knobs.stripe_bytes, 65536);
    CHECK_EQ(parse({"NVSHMEM_EFA_STRIPE_BYTES=0Xa000"}).knobs.stripe_bytes, 0xa000);
    CHECK_EQ(parse({"NVSHMEM_EFA_STRIPE_BYTES=64k"}).knobs.stripe_bytes, 65536);
    CHECK_EQ(parse({"NVSHMEM_EFA_STRIPE_BYTES=0x10k"}).knobs.stripe_bytes, 16384);
    CHECK_EQ(parse({"NVSHMEM_EFA_STRIPE_BYTES=3M"}).knobs.stripe_bytes, 3 << 20);
    CHECK_EQ(parse({"NVSHMEM_EFA_STRIPE_BYTES=1g"}).knobs.stripe_bytes, 1 << 30);
    CHECK_EQ(parse({"NVSHMEM_EFA_SOFT_SEED=9223372036854775807"}).knobs.soft_seed, INT64_MAX);
}

TEST(a_number_with_anything_else_in_it_is_refused_by_name) {
    for (const char* bad : {"12x", "x", "1 k", " 1", "1 ", "1kk", "1.5m", "0x", "--1", "-", "+1", "k", "1e3", "0x-1"}) {
        const std::string entry = std::string("NVSHMEM_EFA_TIMEOUT_MS=") + bad;
        const Parsed parsed = parse({entry.c_str()});
        CHECK_EQ(parsed.status.code(), Code::kConfig);
        CHECK(has(parsed.status.message(), entry.c_str()));
        CHECK(has(parsed.status.message(), "is not a number"));
        CHECK(has(parsed.status.message(), "hint: "));
    }
}

TEST(a_number_too_large_for_64_bits_is_refused_rather_than_wrapped) {
    for (const char* bad : {"9223372036854775808", "0x10000000000000000", "8589934592g", "99999999999999999999k"}) {
        const std::string entry = std::string("NVSHMEM_EFA_SOFT_SEED=") + bad;
        CHECK_EQ(parse({entry.c_str()}).status.code(), Code::kConfig);
    }
}

TEST(a_number_out_of_range_names_the_range) {
    CHECK(parse({"NVSHMEM_EFA_TIMEOUT_MS=10"}).status.ok());
    CHECK(parse({"NVSHMEM_EFA_TIMEOUT_MS=3600000"}).status.ok());
    for (const char* bad : {"NVSHMEM_EFA_TIMEOUT_MS=9", "NVSHMEM_EFA_TIMEOUT_MS=3600001", "NVSHMEM_EFA_TIMEOUT_MS=-5"}) {
        const Parsed parsed = parse({bad});
        CHECK_EQ(parsed.status.code(), Code::kConfig);
        CHECK(has(parsed.status.message(), bad));
        CHECK(has(parsed.status.message(), "10..3600000"));
    }
}

TEST(a_choice_is_case_insensitive_and_kept_in_lower_case) {
    CHECK_EQ(parse({"NVSHMEM_EFA_MODE=Soft"}).knobs.mode, "soft");
    CHECK_EQ(parse({"NVSHMEM_EFA_SOFT_PROFILE=EFA4"}).knobs.soft_profile, "efa4");
}

TEST(a_wrong_choice_names_what_is_allowed) {
    for (const char* bad : {"NVSHMEM_EFA_MODE=sof", "NVSHMEM_EFA_MODE=soft|relay", "NVSHMEM_EFA_MODE=softer",
                            "NVSHMEM_EFA_MODE= soft"}) {
        const Parsed parsed = parse({bad});
        CHECK_EQ(parsed.status.code(), Code::kConfig);
        CHECK(has(parsed.status.message(), bad));
        CHECK(has(parsed.status.message(), "auto|proxy|direct|relay|soft|fallback"));
    }
}

TEST(a_failed_parse_leaves_the_caller_s_knobs_alone) {
    Knobs knobs;
    knobs.rails = 7;
    const char* environment[] = {"NVSHMEM_EFA_RAILS=3", "NVSHMEM_EFA_MODE=nonsense", nullptr};
    CHECK_FAILS(parse_knobs(environment, &knobs, nullptr), Code::kConfig, "NVSHMEM_EFA_MODE=nonsense");
    CHECK_EQ(knobs.rails, 7);
}

TEST(an_unknown_name_with_our_prefix_is_a_warning_with_the_nearest_name) {
    const Parsed parsed = parse({"NVSHMEM_EFA_TIMEOUT=5", "NVSHMEM_EFA_SOFT_SEDE=1", "NVSHMEM_EFA_MODE=soft"});
    CHECK(parsed.status.ok());
    CHECK_EQ(parsed.warnings.size(), 2u);
    CHECK(has(parsed.warnings[0], "NVSHMEM_EFA_TIMEOUT "));
    CHECK(has(parsed.warnings[0], "did you mean NVSHMEM_EFA_TIMEOUT_MS?"));
    CHECK(has(parsed.warnings[1], "did you mean NVSHMEM_EFA_SOFT_SEED?"));
}

TEST(names_of_others_are_not_ours_to_judge) {
    const Parsed parsed = parse({"NVSHMEM_REMOTE_TRANSPORT=efa", "FI_EFA_USE_DEVICE_RDMA=1", "PATH=/bin", "odd"});
    CHECK(parsed.status.ok());
    CHECK_EQ(parsed.warnings.size(), 0u);
}

TEST(the_first_of_two_values_counts_as_with_getenv) {
    CHECK_EQ(parse({"NVSHMEM_EFA_RAILS=2", "NVSHMEM_EFA_RAILS=3"}).knobs.rails, 2);
}

TEST(the_table_is_complete_and_its_defaults_parse) {
    CHECK(knob_table().size() > 20);
    for (const KnobInfo& knob : knob_table()) {
        CHECK_EQ(std::string(knob.name).rfind("NVSHMEM_EFA_", 0), 0u);
        CHECK(std::strlen(knob.doc) > 20);
        CHECK_EQ(std::strlen(knob.range) > 0, std::strcmp(knob.type, "text") != 0);
        const std::string entry = std::string(knob.name) + "=" + knob.default_value;
        const Parsed parsed = parse({entry.c_str()});
        CHECK(parsed.status.ok());
        CHECK_EQ(parsed.warnings.size(), 0u);
    }
}

TEST(load_knobs_reads_a_changed_environment_and_a_bad_one_leaves_defaults) {
    setenv("NVSHMEM_EFA_RAILS", "5", 1);
    CHECK_OK(load_knobs());
    CHECK_EQ(knobs().rails, 5);
    setenv("NVSHMEM_EFA_RAILS", "17", 1);
    CHECK_FAILS(load_knobs(), Code::kConfig, "NVSHMEM_EFA_RAILS=17 is not in 0..16");
    CHECK_EQ(knobs().rails, 0);
    unsetenv("NVSHMEM_EFA_RAILS");
    CHECK_OK(load_knobs());
}

TEST(a_long_unknown_name_is_cut_and_does_not_crash) {
    const std::string entry = "NVSHMEM_EFA_" + std::string(100000, 'A') + "=1";
    const Parsed parsed = parse({entry.c_str()});
    CHECK_EQ(parsed.warnings.size(), 1u);
    CHECK(parsed.warnings[0].size() < 300);
}

TEST_MAIN()
