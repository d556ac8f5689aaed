// SPDX-License-Identifier: Apache-2.0
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <thread>

#include "check.h"
#include "pe_runtime/bootstrap.h"
#include "pe_runtime/bootstrap_wire.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::pe;

namespace {

std::string fresh_job() {
    static std::atomic<int> n{0};
    return "boot-" + std::to_string(getpid()) + "-" + std::to_string(n.fetch_add(1)) + "-job";
}

BootstrapOptions options_of(const std::string& job, int pe, int n_pes, uint64_t timeout_ms = 3000) {
    return {job, pe, n_pes, 4, timeout_ms};
}

std::vector<Status> run_pes(int n_pes, uint64_t timeout_ms, const std::function<Status(BootstrapSocket&)>& work) {
    const std::string job = fresh_job();
    std::vector<Status> results(static_cast<size_t>(n_pes));
    std::vector<std::thread> threads;
    for (int i = 0; i < n_pes; ++i)
        threads.emplace_back([&, i] {
            std::unique_ptr<BootstrapSocket> socket;
            Status status = BootstrapSocket::join(options_of(job, i, n_pes, timeout_ms), &socket);
            if (status.ok()) status = work(*socket);
            if (status.ok()) socket->leave();
            results[static_cast<size_t>(i)] = std::move(status);
        });
    for (std::thread& thread : threads) thread.join();
    return results;
}

// Forks a PE that does `work` and must be ended by the parent, or ends by itself.
pid_t fork_pe(const BootstrapOptions& options, const std::function<void(BootstrapSocket&)>& work) {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    std::unique_ptr<BootstrapSocket> socket;
    if (BootstrapSocket::join(options, &socket).ok()) work(*socket);
    _exit(0);
}

bool has_socket(const std::string& job) {
    std::ifstream table("/proc/net/unix");
    for (std::string line; std::getline(table, line);)
        if (line.find(job) != std::string::npos) return true;
    return false;
}

}  // namespace

TEST(allgather_alltoall_and_barrier_give_everybody_everything) {
    for (const int n : {1, 2, 5}) {
        const auto results = run_pes(n, 3000, [n](BootstrapSocket& socket) -> Status {
            for (int round = 0; round < 20; ++round) {
                std::vector<int> all(static_cast<size_t>(n)), to(all.size()), from(all.size());
                const int mine = socket.pe() * 100 + round;
                EFA_TRY(socket.allgather(&mine, all.data(), sizeof mine));
                for (int i = 0; i < n; ++i) to[static_cast<size_t>(i)] = socket.pe() * 1000 + i;
                EFA_TRY(socket.alltoall(to.data(), from.data(), sizeof(int)));
                EFA_TRY(socket.barrier());
                for (int i = 0; i < n; ++i)
                    if (all[static_cast<size_t>(i)] != i * 100 + round ||
                        from[static_cast<size_t>(i)] != i * 1000 + socket.pe())
                        return Status::error(Code::kInternal, nullptr, "wrong value from PE %d", i);
            }
            return socket.check_peers();
        });
        for (const Status& status : results)
            if (!status.ok()) check::fail(__FILE__, __LINE__, status.message());
    }
}

TEST(a_pe_that_never_comes_is_named_within_the_deadline) {
    const std::string job = fresh_job();
    std::unique_ptr<BootstrapSocket> socket;
    const uint64_t start = monotonic_ns();
    CHECK_FAILS(BootstrapSocket::join(options_of(job, 0, 3, 300), &socket), Code::kTimeout,
                "PE 1, 2 did not come to join within 300 ms");
    CHECK((monotonic_ns() - start) / 1'000'000 < 1500);
    CHECK_FAILS(BootstrapSocket::join(options_of(job, 1, 3, 300), &socket), Code::kTimeout, "found no PE 0");
}

TEST(a_killed_pe_is_named_to_all_who_wait_and_to_those_who_look) {
    const std::string job = fresh_job();
    const pid_t victim = fork_pe(options_of(job, 2, 3), [](BootstrapSocket&) { pause(); });
    const pid_t waiter = fork();
    if (waiter == 0) {
        std::unique_ptr<BootstrapSocket> socket;
        Status status = BootstrapSocket::join(options_of(job, 1, 3), &socket);
        if (status.ok()) status = socket->barrier();
        _exit(status.code() == Code::kPeer && std::strstr(status.message(), "PE 2 (process ") ? 0 : 1);
    }
    std::unique_ptr<BootstrapSocket> socket;
    CHECK_OK(BootstrapSocket::join(options_of(job, 0, 3), &socket));
    CHECK_OK(socket->check_peers());
    kill(victim, SIGKILL);
    const uint64_t start = monotonic_ns();
    Status seen;
    while (seen.ok() && monotonic_ns() - start < 2'000'000'000) seen = socket->check_peers();
    CHECK_FAILS(std::move(seen), Code::kPeer, "ended without a goodbye");
    int status = 0;
    waitpid(victim, nullptr, 0);
    waitpid(waiter, &status, 0);
    CHECK_EQ(status, 0);
    CHECK_FAILS(socket->barrier(), Code::kPeer, "PE 2");  // and stays so
}

TEST(the_death_of_pe_0_is_named) {
    const std::string job = fresh_job();
    const pid_t server = fork_pe(options_of(job, 0, 2), [](BootstrapSocket&) { pause(); });
    std::unique_ptr<BootstrapSocket> socket;
    CHECK_OK(BootstrapSocket::join(options_of(job, 1, 2), &socket));
    kill(server, SIGKILL);
    waitpid(server, nullptr, 0);
    CHECK_FAILS(socket->barrier(), Code::kPeer, "PE 0, which serves the bootstrap, ended");
    CHECK(!has_socket(job));
}

TEST(a_pe_that_does_not_come_to_a_collective_is_named) {
    const auto results = run_pes(2, 400, [](BootstrapSocket& socket) -> Status {
        if (socket.pe() == 0) return socket.barrier();
        usleep(800'000);
        return socket.barrier();
    });
    for (const Status& status : results) {
        CHECK_EQ(status.code(), Code::kTimeout);
        CHECK(std::strstr(status.message(), "PE 1 did not come to barrier within 400 ms"));
    }
}

TEST(pes_in_different_collectives_are_told) {
    const auto results = run_pes(2, 3000, [](BootstrapSocket& socket) -> Status {
        char bytes[64] = {};
        return socket.pe() ? socket.barrier() : socket.allgather(bytes, bytes + 8, 8);
    });
    for (const Status& status : results) CHECK_EQ(status.code(), Code::kMismatch);
}

TEST(giving_up_reaches_the_others_with_its_reason) {
    const auto results = run_pes(3, 3000, [](BootstrapSocket& socket) -> Status {
        if (socket.pe() != 1) return socket.barrier();
        Status why = Status::error(Code::kDevice, nullptr, "the device is on fire");
        socket.abort(why);
        return why;
    });
    CHECK(std::strstr(results[0].message(), "PE 1 gave up: the device is on fire"));
    CHECK(std::strstr(results[2].message(), "PE 1 gave up: the device is on fire"));
}

TEST(pe_0_giving_up_reaches_the_others_before_it_is_gone) {
    for (int tries = 0; tries < 20; ++tries) {
        const auto results = run_pes(3, 3000, [](BootstrapSocket& socket) -> Status {
            if (socket.pe() != 0) return socket.barrier();
            Status why = Status::error(Code::kDevice, nullptr, "the device is on fire");
            socket.abort(why);
            return why;  // and its server ends at once
        });
        for (int pe : {1, 2})
            CHECK(std::strstr(results[static_cast<size_t>(pe)].message(), "PE 0 gave up: the device is on fire"));
    }
}

TEST(leaving_early_is_told_to_those_who_still_call) {
    const auto results = run_pes(2, 2000, [](BootstrapSocket& socket) -> Status {
        if (socket.pe() == 0) return socket.barrier();
        return Status();
    });
    CHECK(std::strstr(results[0].message(), "PE 1"));
    CHECK(std::strstr(results[0].message(), "left"));
}

TEST(a_second_pe_of_the_same_number_is_refused) {
    const std::string job = fresh_job();
    Status second, first;
    std::unique_ptr<BootstrapSocket> sockets[3];
    std::thread zero([&] { first = BootstrapSocket::join(options_of(job, 0, 3, 1500), &sockets[0]); });
    std::thread one([&] { (void)BootstrapSocket::join(options_of(job, 1, 3, 1500), &sockets[1]); });
    usleep(300'000);
    second = BootstrapSocket::join(options_of(job, 1, 3, 1500), &sockets[2]);
    zero.join();
    one.join();
    CHECK_FAILS(std::move(second), Code::kInvalidArgument, "PE 1 is there already");
    CHECK_FAILS(std::move(first), Code::kTimeout, "PE 2 did not come");
}

TEST(two_jobs_of_one_name_are_refused) {
    const std::string job = fresh_job();
    std::unique_ptr<BootstrapSocket> socket;
    std::thread first([&] { (void)BootstrapSocket::join(options_of(job, 0, 2, 600), &socket); });
    usleep(100'000);
    std::unique_ptr<BootstrapSocket> other;
    CHECK_FAILS(BootstrapSocket::join(options_of(job, 0, 2, 600), &other), Code::kResource,
                "give every job its own random --job name");
    first.join();
}

TEST(rubbish_and_oversized_frames_harm_nobody) {
    const std::string job = fresh_job();
    Status joined;
    std::unique_ptr<BootstrapSocket> zero;
    std::thread server([&] { joined = BootstrapSocket::join(options_of(job, 0, 2), &zero); });
    sockaddr_un address;
    const socklen_t length = bootstrap_address(job, &address);
    std::vector<int> fds;
    for (int kind = 0; kind < 4; ++kind) {
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        for (int tries = 0; tries < 500 && connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0; ++tries)
            usleep(2000);
        FrameHeader header;
        header.kind = kFrameJoin;
        if (kind == 0) header.magic = 1;
        if (kind == 1) header.bytes = ~uint64_t{0};
        if (kind == 2) header.pe = 9, header.bytes = sizeof(JoinPayload);
        const JoinPayload payload{2, 4};
        if (kind != 3) {
            CHECK_EQ(write_all(fd, &header, sizeof header, monotonic_ns() + 1'000'000'000), 0);
            (void)write_all(fd, &payload, sizeof payload, monotonic_ns() + 1'000'000'000);
        }
        fds.push_back(fd);
    }
    std::unique_ptr<BootstrapSocket> one;
    CHECK_OK(BootstrapSocket::join(options_of(job, 1, 2), &one));
    server.join();
    CHECK_OK(std::move(joined));
    for (const int fd : fds) close(fd);
    CHECK_OK(one->check_peers());
}

TEST(wrong_options_are_refused_by_name) {
    std::unique_ptr<BootstrapSocket> socket;
    CHECK_FAILS(BootstrapSocket::join(options_of("short", 0, 1), &socket), Code::kInvalidArgument, "no job name");
    CHECK_FAILS(BootstrapSocket::join(options_of(fresh_job(), 3, 2), &socket), Code::kInvalidArgument,
                "PE 3 of 2 does not exist");
    CHECK_FAILS(BootstrapSocket::join(options_of(fresh_job(), 0, 65), &socket), Code::kInvalidArgument, "65 PEs");
    CHECK_OK(BootstrapSocket::join(options_of(fresh_job(), 0, 1), &socket));
    CHECK_FAILS(socket->allgather(nullptr, nullptr, kCollectiveBytesMax + 1), Code::kInvalidArgument, "at most");
}

TEST(nothing_is_left_of_the_socket_once_all_have_joined) {
    const std::string job = fresh_job();
    std::unique_ptr<BootstrapSocket> zero, one;
    std::thread other([&] { (void)BootstrapSocket::join(options_of(job, 1, 2), &one); });
    CHECK_OK(BootstrapSocket::join(options_of(job, 0, 2), &zero));
    other.join();
    std::thread leaver([&] { one->leave(); });
    zero->leave();
    leaver.join();
    one.reset();
    zero.reset();
    CHECK(!has_socket(job));
}

TEST_MAIN()
