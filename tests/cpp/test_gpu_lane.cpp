// SPDX-License-Identifier: Apache-2.0
// What the host does for posters that are not it: real transports, with CPU threads as posters.
#include <set>

#include "gpu_lane_rig.h"

using namespace gpu_lane_rig;

namespace {

constexpr size_t kHeapBytes = 1 << 16;

// A message takes up to this long to arrive: long enough that a host which does not wait looks too early.
Knobs slow_knobs() {
    Knobs knobs = default_knobs();
    knobs.soft_reorder_ns = 20'000'000;
    knobs.soft_duplicate_ppm = 200'000;
    return knobs;
}

uint64_t addr(const void* at) { return reinterpret_cast<uint64_t>(at); }
uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

}  // namespace

TEST(host_quiet_returns_only_when_posted_writes_are_placed) {
    Job job(2, slow_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    const Lane lanes[] = {Lane::kHost, Lane::kProxy};
    for (uint64_t round = 1; round <= 4; ++round) {
        for (size_t i = 0; i < 24; ++i) {
            *from.word(i) = round * 1000 + i;
            CHECK(post_write(*from.state, i % 2, addr(from.word(i)), addr(from.word(100 + i)), 8, 1));
        }
        CHECK_OK(from.transport->quiet(lanes[round % 2], 1));
        for (size_t i = 0; i < 24; ++i) CHECK_EQ(load(job.pes[1].word(100 + i)), round * 1000 + i);
    }
}

TEST(host_quiet_returns_only_when_posted_atomics_are_applied) {
    Job job(2, slow_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    for (uint64_t round = 1; round <= 4; ++round) {
        for (size_t i = 0; i < 8; ++i) CHECK(post_add(*from.state, i % 2, addr(from.word(7)), 3, 1));
        CHECK_OK(from.transport->quiet(round % 2 ? Lane::kHost : Lane::kProxy, 1));
        CHECK_EQ(load(job.pes[1].word(7)), round * 24);
    }
}

TEST(host_quiet_ends_among_posters_that_never_pause) {
    Knobs knobs = slow_knobs();
    knobs.gpu_queues = 1;
    Job job(2, knobs, kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    std::atomic<bool> is_over{false};
    std::atomic<int> failures{0};
    std::vector<std::thread> posters;
    for (size_t t = 0; t < 2; ++t) {
        posters.emplace_back([&, t] {
            for (size_t i = 0; !is_over; ++i) {
                failures += post_write(*from.state, 0, addr(from.word(t)), addr(from.word(300 + t * 64 + i % 64)), 8, 1) ? 0 : 1;
                std::this_thread::yield();
            }
        });
    }
    Status status;
    uint64_t round = 0, seen = 0;
    while (round == seen && round < 4 && status.ok()) {
        *from.word(8) = ++round;
        failures += post_write(*from.state, 0, addr(from.word(8)), addr(from.word(200)), 8, 1) ? 0 : 1;
        status = from.transport->quiet(Lane::kHost, 1);
        seen = load(job.pes[1].word(200));
    }
    is_over = true;
    for (std::thread& poster : posters) poster.join();
    CHECK_OK(std::move(status));
    CHECK_EQ(seen, uint64_t{4});
    CHECK_EQ(failures.load(), 0);
    CHECK_OK(from.transport->quiet(Lane::kHost, 1));
}

TEST(host_fence_orders_posted_writes_before_host_puts) {
    Job job(2, slow_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    for (uint64_t round = 1; round <= 4; ++round) {
        for (size_t i = 0; i < 16; ++i) {
            *from.word(i) = round;
            CHECK(post_write(*from.state, i % 2, addr(from.word(i)), addr(from.word(100 + i)), 8, 1));
        }
        CHECK_OK(from.transport->fence(Lane::kHost, 1));
        for (size_t i = 0; i < 16; ++i) CHECK_EQ(load(job.pes[1].word(100 + i)), round);
    }
}

TEST(a_failed_request_is_named_by_host_quiet_though_no_poster_looks) {
    Job job(2, default_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    for (size_t i = 0; i < 10; ++i) CHECK(post_write(*from.state, 1, addr(from.word(i)), addr(from.word(100)), 8, 1));
    CHECK(post_write(*from.state, 1, addr(from.word(0)), addr(from.word(200)), 8, 1, 0, 0x5000));
    char where[32];
    std::snprintf(where, sizeof where, "at %#llx", static_cast<unsigned long long>(addr(job.pes[1].word(200))));
    Status status = from.transport->quiet(Lane::kHost, 1);
    CHECK_EQ(status.code(), Code::kDevice);
    for (const char* part : {"PE 0 -> PE 1", "GPU queue 1 of soft0", "RDMA WRITE", static_cast<const char*>(where), "hint:"})
        if (!std::strstr(status.message(), part)) check::fail(__FILE__, __LINE__, std::string(part) + " is not in: " + status.message());
    CHECK_FAILS(from.transport->quiet(Lane::kProxy, 0), Code::kDevice, "GPU queue 1");
    CHECK_OK(job.pes[1].transport->quiet(Lane::kHost, 0));
}

TEST(a_failure_that_a_poster_noticed_is_named_by_the_next_host_operation_of_any_kind) {
    Job job(2, default_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    CHECK(post_write(*from.state, 0, addr(from.word(0)), addr(from.word(200)), 8, 1, 0, 0x5000));
    CHECK(!shared_quiet(from.state->queues[0], 1));
    RmaOp put;
    put.pe = 1;
    CHECK_FAILS(from.transport->rma(Lane::kHost, put), Code::kDevice, "GPU queue 0 of soft0");
    AmoOp amo;
    amo.pe = 1;
    CHECK_FAILS(from.transport->amo(Lane::kProxy, amo), Code::kDevice, "RDMA WRITE");
    PutSignalOp signal;
    signal.signal = amo;
    CHECK_FAILS(from.transport->put_signal(Lane::kHost, signal), Code::kDevice, "PE 0 -> PE 1");
    CHECK_FAILS(from.transport->fence(Lane::kHost, 1), Code::kDevice, "PE 0 -> PE 1");
    CHECK_FAILS(from.transport->quiet(Lane::kHost, 1), Code::kDevice, "PE 0 -> PE 1");
    CHECK_FAILS(from.transport->progress(Lane::kProxy), Code::kDevice, "PE 0 -> PE 1");
}

TEST(what_never_completes_is_named_at_the_deadline) {
    Knobs knobs = default_knobs();
    knobs.timeout_ms = 300;
    Job job(2, knobs, kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    const DeviceState& state = *job.pes[0].state;
    // A poster that took two slots, and another that took a record's number, and neither went on.
    __atomic_fetch_add(&state.queues[1].state->head, 2, __ATOMIC_RELAXED);
    CHECK_FAILS(job.pes[0].transport->quiet(Lane::kHost, 1), Code::kTimeout, "open: 2 requests in GPU queue 1 of soft0)");
    __atomic_fetch_add(&job.pes[1].state->peers[0].next_seq, 3, __ATOMIC_RELAXED);
    CHECK_FAILS(job.pes[1].transport->quiet(Lane::kHost, 0), Code::kTimeout, "open: 3 signals or atomics at PE 0)");
    CHECK_OK(job.pes[1].transport->quiet(Lane::kHost, 1));
}

TEST(an_atomic_on_unregistered_memory_is_refused_by_name) {
    Job job(2, default_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, 4096); });
    CHECK(post_add(*job.pes[0].state, 0, addr(job.pes[0].at(8192)), 1, 1));
    CHECK_FAILS(job.pes[0].transport->quiet(Lane::kHost, 1), Code::kUnregistered, "PE 0 -> PE 1 (GPU queues): that PE's agent refused");
}

TEST(chunks_that_come_later_are_told_in_place_also_below_the_first) {
    Job job(2, default_knobs(), kHeapBytes);
    const DeviceState* const state = job.pes[0].state;
    CHECK_EQ(state->n_chunks, 0u);
    for (uint32_t i = 0; i < 4; ++i) {
        const size_t from = (3 - i) * 4096;
        job.on_all([&](int pe) { job.add_chunk(pe, from, 4096); });
        CHECK_EQ(state->n_chunks, i + 1);
        CHECK_EQ(state->chunks[i].bytes, uint64_t{4096});
        PeSide& side = job.pes[0];
        CHECK_EQ(state->heap_base + state->chunks[i].offset, addr(side.at(from)));
        auto* word = reinterpret_cast<uint64_t*>(side.at(from + 8));
        *word = 77 + i;
        CHECK(post_write(*state, i % 2, addr(word), addr(side.at(from + 16)), 8, 1, i));
        CHECK_OK(side.transport->quiet(Lane::kHost, 1));
        CHECK_EQ(load(reinterpret_cast<uint64_t*>(job.pes[1].at(from + 16))), uint64_t{77 + i});
    }
    const void* again = nullptr;
    CHECK_OK(job.pes[0].transport->device_state(&again));
    CHECK(again == state);
}

TEST(registered_buffers_come_and_go_in_place) {
    Job job(1, default_knobs(), kHeapBytes);
    Transport& transport = *job.pes[0].transport;
    const DeviceState& state = *job.pes[0].state;
    MemHandle first, second, third;
    CHECK_OK(transport.register_memory(job.pes[0].at(0), 64, &first));
    CHECK_OK(transport.add_local_memory(first));
    CHECK_OK(transport.register_memory(job.pes[0].at(4096), 128, &second));
    CHECK_OK(transport.add_local_memory(second));
    CHECK_EQ(state.n_locals, 2u);
    CHECK_EQ(state.locals[1].base, second.base);
    CHECK_EQ(state.local_lkeys[1], second.lkey[0]);
    CHECK_OK(transport.release_memory(first));
    CHECK_EQ(state.locals[0].bytes, uint64_t{0});
    CHECK_EQ(state.locals[1].bytes, uint64_t{128});
    CHECK_OK(transport.register_memory(job.pes[0].at(8192), 256, &third));
    CHECK_OK(transport.add_local_memory(third));
    CHECK_EQ(state.n_locals, 2u);
    CHECK_EQ(state.locals[0].base, third.base);
    CHECK_EQ(state.locals[0].bytes, uint64_t{256});
    CHECK_EQ(state.local_lkeys[0], third.lkey[0]);
}

TEST(a_pe_without_queues_takes_what_others_post_to_it) {
    std::vector<Knobs> knobs(2, default_knobs());
    knobs[1].gpu_queues = 0;
    Job job(2, knobs, kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    const void* none = nullptr;
    CHECK_FAILS(job.pes[1].transport->device_state(&none), Code::kUnsupported, "hint: set NVSHMEM_EFA_GPU_QUEUES");
    CHECK(none == nullptr);
    CHECK(post_add(*job.pes[0].state, 0, addr(job.pes[0].word(3)), 5, 1));
    CHECK_OK(job.pes[0].transport->quiet(Lane::kHost, 1));
    CHECK_EQ(load(job.pes[1].word(3)), uint64_t{5});
    CHECK_OK(job.pes[1].transport->quiet(Lane::kHost, 0));
}

TEST(the_state_says_what_the_job_is) {
    Knobs knobs = default_knobs();
    knobs.soft_rails = 2;
    knobs.gpu_queues = 3;
    knobs.signal = "gated";
    knobs.soft_profile = "efa4";
    knobs.sq_depth = 64;
    Job job(3, knobs, kHeapBytes);
    for (int pe = 0; pe < 3; ++pe) {
        const DeviceState& state = *job.pes[static_cast<size_t>(pe)].state;
        CHECK(state.magic == kDeviceStateMagic && device_state_fits(state.version, state.bytes));
        CHECK(state.pe == pe && state.n_pes == 3 && state.n_rails == 2 && state.queues_per_rail == 3);
        CHECK_EQ(state.flags, kCountByImmediate | kWritesOnce | kGatedSignals);
        CHECK(is_power_of_two(state.window) && state.window >= 4);
        CHECK_EQ(state.queues[5].depth, 64u);
        std::set<uint32_t> numbers;
        for (size_t i = 0; i < 6; ++i) numbers.insert(static_cast<uint32_t>(i / 3) << 16 | state.queues[i].qp_num);
        CHECK_EQ(numbers.size(), size_t{6});
        uint64_t value = 0;
        for (uint32_t i = 0; i < 3 * state.window; ++i)
            for (const uint32_t seq : {i % state.window, i % state.window + state.window})
                CHECK(!reply_decode(state.replies[i], seq, &value));
        CHECK(job.pes[static_cast<size_t>(pe)].transport->describe().find("CPU threads post to 3 soft queues a rail") != std::string::npos);
    }
}

TEST(windows_of_all_senders_fit_a_receive_queue_or_the_job_does_not_start) {
    Knobs knobs = default_knobs();
    for (const int64_t depth : {32, 64, 1024}) {
        knobs.rq_depth = depth;
        Job job(3, knobs, kHeapBytes);
        CHECK(job.pes[0].state->window * 3 * kLanesMax <= depth);
        CHECK(job.pes[0].state->window * 2 * 3 * kLanesMax > depth || job.pes[0].state->window == 128);
    }
    knobs.rq_depth = 16;
    std::atomic<int> refused{0};
    {
        auto meeting = std::make_shared<Meeting>(3);
        std::vector<std::thread> threads;
        for (int pe = 0; pe < 3; ++pe)
            threads.emplace_back([&, pe, meeting] {
                TransportOptions options;
                options.knobs = knobs;
                options.nics = open_nics(pe, knobs);
                std::unique_ptr<Transport> transport;
                if (!Transport::create(std::move(options), &transport).ok()) return;
                Bootstrap bootstrap;
                bootstrap.pe = pe;
                bootstrap.n_pes = 3;
                bootstrap.allgather = [&](const void* send, void* recv, size_t bytes) {
                    meeting->allgather(pe, send, recv, bytes);
                    return Status();
                };
                bootstrap.barrier = [] { return Status(); };
                const Status status = transport->connect(bootstrap);
                refused += status.code() == Code::kConfig && std::strstr(status.message(), "hint: raise NVSHMEM_EFA_RQ_DEPTH") ? 1 : 0;
            });
        for (std::thread& thread : threads) thread.join();
    }
    CHECK_EQ(refused.load(), 3);
}

TEST(jobs_end_and_start_again) {
    for (int round = 0; round < 3; ++round) {
        Job job(2, default_knobs(), kHeapBytes);
        job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
        *job.pes[0].word(0) = 40;
        CHECK(post_write(*job.pes[0].state, 0, addr(job.pes[0].word(0)), addr(job.pes[0].word(9)), 8, 1));
        if (round == 1) continue;  // ended with a request under way
        CHECK_OK(job.pes[0].transport->quiet(Lane::kHost, 1));
        CHECK_EQ(load(job.pes[1].word(9)), uint64_t{40});
        CHECK_EQ(job.pes[0].transport->stats().gpu_work_requests, uint64_t{1});
    }
}

TEST_MAIN()
