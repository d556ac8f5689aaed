// SPDX-License-Identifier: Apache-2.0
// The wire between real processes, over shared memory and over TCP: traffic, back-pressure, many peers at once, deaths.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "test_wire_processes.h"

using namespace wire_test;

namespace {

// Runs `body` once per wire.
void on_both_wires(void (*body)(const char* kind)) {
    for (const char* kind : {"shm", "tcp"}) {
        use_wire(kind);
        body(kind);
    }
}

int count_sockets() {
    int sockets = 0;
    DIR* folder = opendir("/proc/self/fd");
    CHECK(folder != nullptr);
    while (const dirent* entry = readdir(folder)) {
        struct stat file {};
        const int fd = std::atoi(entry->d_name);
        if (entry->d_name[0] != '.' && fstat(fd, &file) == 0 && S_ISSOCK(file.st_mode)) ++sockets;
    }
    closedir(folder);
    return sockets;
}

void ping_pong(const char* kind) {
    run_good(2, [kind](Rank& self) {
        self.open();
        self.barrier(0);
        const int other = 1 - self.rank;
        CHECK_OK(self.connect(other));  // both at the same time
        CHECK_EQ(self.kind_of(other), std::string(kind));
        CHECK_EQ(self.kind_of(self.rank), std::string("loopback"));
        for (uint64_t round = 0; round < 2000; ++round) {
            if (self.rank == 0) self.send_surely(other, round, 8);
            self.wait("the ball", [&] { return self.received[other] == round + 1; });
            if (self.rank == 1) self.send_surely(other, round, 8);
        }
        const LinkStats sum = self.wire->statistics(kind);
        CHECK_EQ(sum.packets_sent, 2000u);
        CHECK_EQ(sum.packets_received, 2000u);
        CHECK_EQ(sum.bytes_sent, 16000u);
        CHECK_EQ(sum.bytes_received, 16000u);
        self.barrier(1);
    });
}

void bulk(const char* kind) {
    run_good(2, [kind](Rank& self) {
        self.open();
        self.barrier(0);
        CHECK_OK(self.connect(1 - self.rank));
        constexpr uint64_t kMessages = 300;
        if (self.rank == 0) {
            for (uint64_t i = 0; i <= kMessages; ++i) {
                const size_t bytes = i == kMessages ? kPacketPayloadMax : (i * 12345) % (kPacketPayloadMax + 1);
                self.wait("room to send", [&] {
                    if (self.send(1, i, bytes)) return true;
                    self.shared->words[0] = 1;
                    return false;
                });
            }
            self.barrier(1);
            CHECK(self.wire->statistics(kind).sends_refused > 0);
        } else {
            // Receives nothing until the sender was refused.
            for (int ms = 0; self.shared->words[0] == 0 && ms < 20000; ++ms) usleep(1000);
            self.wait("all messages", [&] { return self.received[0] == kMessages + 1; });
            self.barrier(1);
        }
    });
}

void all_to_all(const char* kind) {
    run_good(12, [kind](Rank& self) {
        self.open();
        self.barrier(0);
        // Everybody dials everybody, in different orders, all at once.
        for (int i = 0; i < self.count; ++i) {
            const int other = (self.rank * 5 + i * 7) % self.count;
            CHECK_OK(self.connect(other));
            CHECK_OK(self.connect(other));  // a second device of that process
        }
        self.barrier(1);
        // One connection per peer, and the listener; those that were given up close a moment later.
        self.wait("one connection per peer", [&] { return count_sockets() == self.count - 1 + 1; });
        for (uint64_t i = 0; i < 50; ++i) {
            for (int other = 0; other < self.count; ++other) self.send_surely(other, i, 1 + i * 37);
        }
        self.wait("everybody's messages", [&] {
            for (int other = 0; other < self.count; ++other) {
                if (self.received[other] != 50) return false;
            }
            return true;
        });
        CHECK_EQ(self.wire->statistics(kind).packets_received, 50u * 11u);
        CHECK_EQ(self.wire->statistics("loopback").packets_received, 50u);
        self.barrier(2);
    });
}

void one_sided(const char* /*kind*/) {
    for (int dialler : {0, 1}) {
        run_good(2, [dialler](Rank& self) {
            self.open();
            self.barrier(0);
            if (self.rank == dialler) CHECK_OK(self.connect(1 - dialler));
            if (self.rank == dialler) self.send_surely(1 - self.rank, 0, 100);
            self.wait("the message", [&] { return self.rank == dialler || self.received[dialler] == 1; });
            if (self.rank != dialler) self.send_surely(dialler, 0, 100);  // as a device answers
            self.wait("the answer", [&] { return self.received[1 - self.rank] == 1; });
            CHECK_OK(self.connect(1 - self.rank));  // connected already, at once
            self.barrier(1);
        });
    }
}

void kill_is_noticed(const char* /*kind*/) {
    const std::vector<int> codes = run_ranks(3, [](Rank& self) {
        self.open();
        self.barrier(0);
        for (int other = 0; other < 3; ++other) CHECK_OK(self.connect(other));
        self.barrier(1);
        if (self.rank == 2) {
            for (uint64_t i = 0; i < 100; ++i) self.send_surely(0, i, 1000);
            kill(getpid(), SIGKILL);
        }
        CHECK(!self.is_gone(1 - self.rank));
        const uint64_t start = now_ms();
        self.wait("the death", [&] { return self.is_gone(2); }, 2000);
        CHECK(now_ms() - start < 2000);
        if (self.rank == 0) CHECK_EQ(self.received[2], 100u);  // what it sent before still came
        CHECK(self.send(2, 0, 100));                            // swallowed
        CHECK_FAILS(self.connect(2), Code::kPeer, "has ended");
        CHECK(!self.is_gone(1 - self.rank));
        for (uint64_t i = 0; i < 10; ++i) self.send_surely(1 - self.rank, i, 100);  // the others live on
        self.wait("the other", [&] { return self.received[1 - self.rank] == 10; });
        self.barrier(2, 2);
    });
    CHECK_EQ(codes[0], 0);
    CHECK_EQ(codes[1], 0);
    CHECK_EQ(codes[2], 128 + SIGKILL);
}

void orderly_end(const char* kind) {
    LogFile log;
    run_good(2, [](Rank& self) {
        self.open();
        self.barrier(0);
        CHECK_OK(self.connect(1 - self.rank));
        self.barrier(1);
        if (self.rank == 1) {
            for (uint64_t i = 0; i < 50; ++i) self.send_surely(0, i, 10000);
            self.wire.reset();  // what was sent still arrives
            return;
        }
        self.wait("the end", [&] { return self.is_gone(1); });
        CHECK_EQ(self.received[1], 50u);
    });
    if (log.has("ERROR") || log.has("WARN")) check::fail(__FILE__, __LINE__, std::string("noise in the log, wire ") + kind);
}

}  // namespace

TEST(two_processes_play_ping_pong) { on_both_wires(ping_pong); }
TEST(bulk_data_meets_back_pressure_and_arrives_in_order) { on_both_wires(bulk); }
TEST(twelve_processes_that_all_dial_at_once_get_one_connection_per_pair) { on_both_wires(all_to_all); }
TEST(a_connection_made_by_one_side_serves_both) { on_both_wires(one_sided); }
TEST(a_killed_peer_is_noticed_and_others_live_on) { on_both_wires(kill_is_noticed); }
TEST(what_was_sent_before_an_orderly_end_arrives_and_nothing_is_logged) { on_both_wires(orderly_end); }

TEST(a_kill_is_noticed_even_if_a_child_of_the_peer_still_holds_its_sockets) {
    use_wire("shm");
    const std::vector<int> codes = run_ranks(2, [](Rank& self) {
        self.open();
        self.barrier(0);
        CHECK_OK(self.connect(1 - self.rank));
        self.barrier(1);
        if (self.rank == 1) {
            const pid_t child = fork();  // a data loader, say
            if (child == 0) {
                usleep(10'000'000);
                _exit(0);
            }
            self.shared->words[0] = static_cast<uint64_t>(child);
            kill(getpid(), SIGKILL);
        }
        self.wait("the death", [&] { return self.is_gone(1); }, 2000);
        CHECK(kill(static_cast<pid_t>(self.shared->words[0]), SIGKILL) == 0);  // the child was alive all the time
    });
    CHECK_EQ(codes[0], 0);
    CHECK_EQ(codes[1], 128 + SIGKILL);
}

TEST(auto_uses_shared_memory_here_and_tcp_to_what_says_to_be_another_host) {
    use_wire("auto");
    run_good(3, [](Rank& self) {
        self.open();
        // Rank 2 pretends: bytes 16..31 of `extra` are its host.
        if (self.rank == 2) self.shared->addresses[2].extra[16] ^= 1;
        self.barrier(0);
        if (self.rank == 2) {
            for (int other : {0, 1}) {
                PeerAddress there = self.shared->addresses[other];
                there.extra[16] ^= 1;
                CHECK_OK(self.connect(there));
            }
        } else {
            for (int other = 0; other < 3; ++other) CHECK_OK(self.connect(other));
            CHECK_EQ(self.kind_of(1 - self.rank), std::string("shm"));
            CHECK_EQ(self.kind_of(2), std::string("tcp"));
        }
        for (int other = 0; other < 3; ++other) self.send_surely(other, 0, 1000);
        self.wait("all", [&] { return self.received[0] == 1 && self.received[1] == 1 && self.received[2] == 1; });
        self.barrier(1);
    });
}

TEST(an_engine_thread_that_polls_does_not_disturb_connects) {
    use_wire("shm");
    run_good(4, [](Rank& self) {
        self.open();
        self.barrier(0);
        std::atomic<bool> stop{false};
        pthread_t thread;
        struct Engine {
            Rank* rank;
            std::atomic<bool>* stop;
        } engine{&self, &stop};
        pthread_create(
            &thread, nullptr,
            [](void* argument) -> void* {
                auto* engine = static_cast<Engine*>(argument);
                while (!engine->stop->load()) {
                    engine->rank->poll();
                    sched_yield();
                }
                return nullptr;
            },
            &engine);
        for (int other = 0; other < 4; ++other) CHECK_OK(self.connect(other));
        for (uint64_t i = 0; i < 20; ++i) {
            for (int other = 0; other < 4; ++other) {
                while (!self.send(other, i, 5000)) sched_yield();
            }
        }
        const auto have_all = [&] {
            const std::lock_guard guard(self.lock);
            for (int other = 0; other < 4; ++other) {
                if (self.received[other] != 20) return false;
            }
            return true;
        };
        const uint64_t end = now_ms() + 20000;
        while (!have_all() && now_ms() < end) usleep(1000);
        CHECK(have_all());
        self.shared->arrivals[5].fetch_add(1);
        while (self.shared->arrivals[5].load() < 4 && now_ms() < end) usleep(1000);
        stop = true;
        pthread_join(thread, nullptr);
    });
}

namespace {

// Exports one memory file.
class ExportingPort final : public MemoryPort {
   public:
    explicit ExportingPort(int fd) : fd_(fd) {}
    Ticket copy(MemoryAddr, MemoryAddr, size_t) override { return 0; }
    void flush() override {}
    bool done(Ticket) override { return true; }
    Status error() override { return Status(); }
    void* alloc_host(size_t) override { return nullptr; }
    void free_host(void*) override {}
    Status add_local(const MemoryAttr&, MemoryShare*) override { return Status(); }
    void remove_local(const MemoryAttr&) override {}
    Status attach(const MemoryShare&, const FetchFd&) override { return Status(); }
    int export_fd(uint64_t export_id, uint32_t index) override { return export_id == 42 && index == 3 ? fd_ : -1; }
    bool reference_of(MemoryAddr, size_t, PeerBytes*) override { return false; }
    bool resolve(const PeerBytes&, size_t, MemoryAddr*) override { return false; }

   private:
    int fd_;
};

}  // namespace

TEST(processes_fetch_descriptors_from_each_other_at_the_same_time) {
    use_wire("shm");
    run_good(3, [](Rank& self) {
        const int file = memfd_create("exported", MFD_CLOEXEC);
        CHECK(pwrite(file, &self.rank, sizeof self.rank, 0) == sizeof self.rank);
        ExportingPort port(file);
        self.open(7, &port);
        self.barrier(0);
        for (int other = 0; other < 3; ++other) CHECK_OK(self.connect(other));
        for (int other = 0; other < 3; ++other) {
            const int fd = self.wire->fetch_fd(self.shared->addresses[other], 42, 3);
            int owner = -1;
            CHECK(fd >= 0);
            CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
            CHECK(pread(fd, &owner, sizeof owner, 0) == sizeof owner);
            CHECK_EQ(owner, other);
            close(fd);
            CHECK_EQ(self.wire->fetch_fd(self.shared->addresses[other], 42, 4), -1);  // refused by the owner
        }
        self.barrier(1);
    });
}

TEST(a_descriptor_is_not_had_over_tcp_or_from_strangers) {
    use_wire("tcp");
    run_good(2, [](Rank& self) {
        self.open();
        self.barrier(0);
        CHECK_EQ(self.wire->fetch_fd(self.shared->addresses[1 - self.rank], 42, 3), -1);
        CHECK_OK(self.connect(1 - self.rank));
        CHECK_EQ(self.wire->fetch_fd(self.shared->addresses[1 - self.rank], 42, 3), -1);
        self.barrier(1);
    });
}

namespace {

// How many names of sockets and shared memory there are that begin as those of this program's processes do.
int count_names() {
    char ours[32];
    std::snprintf(ours, sizeof ours, "nvshmem-efa-%08x", static_cast<unsigned>(getpid()));
    std::ifstream sockets("/proc/net/unix");
    std::string line;
    int names = 0;
    while (std::getline(sockets, line)) names += line.find(ours) != std::string::npos;
    DIR* folder = opendir("/dev/shm");
    while (const dirent* entry = folder ? readdir(folder) : nullptr) names += std::strstr(entry->d_name, "nvshmem") != nullptr;
    if (folder) closedir(folder);
    return names;
}

}  // namespace

TEST(nothing_is_left_behind_by_an_orderly_end_or_a_kill) {
    use_wire("auto");
    const int before = count_names();
    char name[32];
    std::snprintf(name, sizeof name, "nvshmem-efa-%08x", static_cast<unsigned>(getpid()));
    const std::string expected = name;
    const std::vector<int> codes = run_ranks(3, [&](Rank& self) {
        self.open();
        self.barrier(0);
        for (int other = 0; other < 3; ++other) CHECK_OK(self.connect(other));
        std::ifstream sockets("/proc/net/unix");
        const std::string all((std::istreambuf_iterator<char>(sockets)), std::istreambuf_iterator<char>());
        CHECK(all.find(expected) != std::string::npos);  // while it runs, the name is there
        self.barrier(1);
        if (self.rank == 1) kill(getpid(), SIGKILL);
        if (self.rank == 2) self.wire.reset();
    });
    CHECK_EQ(codes[1], 128 + SIGKILL);
    CHECK_EQ(codes[0], 0);
    CHECK_EQ(codes[2], 0);
    CHECK_EQ(count_names(), before);
}

TEST_MAIN()
