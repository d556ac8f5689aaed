// SPDX-License-Identifier: Apache-2.0
// Real processes for the tests of the wire: forked before any thread exists, each with its own wire, meeting in a page of
// shared memory. A child that hangs is killed and counts as failed.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "check.h"
#include "knobs.h"
#include "soft_efa/process_wire.h"

namespace wire_test {

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

inline constexpr int kRanksMax = 32;

inline uint64_t now_ms() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1'000'000;
}

inline Gid gid_of(uint64_t process_id) {
    Gid gid;
    gid.raw[0] = 0xfe;
    gid.raw[1] = 0x80;
    std::memcpy(gid.raw + 4, &process_id, sizeof process_id);
    return gid;
}

// Ids of one test program begin with its pid, so that what it leaves can be told from what others do; they differ from
// run to run, as a child that outlives its parent for a while still holds the old names.
inline uint64_t process_id_of(int run, int rank) {
    return static_cast<uint64_t>(getpid()) << 32 | static_cast<uint64_t>(run) << 8 | static_cast<uint64_t>(rank + 1);
}
inline int rank_of(uint64_t process_id) { return static_cast<int>(process_id & 0xff) - 1; }

struct Shared {
    std::atomic<int> arrivals[16];
    PeerAddress addresses[kRanksMax];
    pid_t pids[kRanksMax];
    std::atomic<uint64_t> words[64];  // for the test itself
};

// What a test puts into every packet, so that each can be checked on its own.
inline uint8_t pattern(uint64_t message, size_t i) { return static_cast<uint8_t>(message * 131 + i * 7 + (i >> 8)); }

class Rank {
   public:
    Rank(int rank, int count, uint64_t process_id, Shared* shared)
        : rank(rank), count(count), process_id(process_id), shared(shared) {}

    // Makes the wire with the knobs of the environment as it is now, and publishes its address.
    void open(uint8_t secret_byte = 7, MemoryPort* memory = nullptr) {
        CHECK_OK(load_knobs());
        ProcessWireOptions options;
        options.process_id = process_id;
        options.local_gids = {gid_of(process_id)};
        options.engine_lock = &lock;
        options.memory = memory;
        CHECK_OK(make_process_wire(options, &wire));
        address.gid = gid_of(process_id);
        wire->describe_self(&address);
        shared->addresses[rank] = address;
        join(secret_byte);
    }
    void join(uint8_t secret_byte) {
        JobSecret secret;
        std::memset(secret.bytes, secret_byte, sizeof secret.bytes);
        CHECK_OK(wire->join_job(secret));
    }
    Status connect(int other) { return connect(shared->addresses[other]); }
    Status connect(const PeerAddress& other) {
        const std::lock_guard guard(lock);
        return wire->connect(other);
    }
    bool send(int other, uint64_t message, size_t bytes) {
        const std::lock_guard guard(lock);
        buffer_.resize(bytes);
        for (size_t i = 0; i < bytes; ++i) buffer_[i] = pattern(message, i);
        PacketHeader header;
        header.type = PacketType::kWrite;
        header.src_gid = address.gid;
        header.dst_gid = shared->addresses[other].gid;
        header.message = message;
        header.payload_bytes = static_cast<uint32_t>(bytes);
        const bool sent = wire->send(header, buffer_.data());
        wire->flush();
        return sent;
    }
    void send_surely(int other, uint64_t message, size_t bytes) {
        wait("room to send", [&] { return send(other, message, bytes); });
    }
    // Counts and checks what has come.
    size_t poll() {
        const std::lock_guard guard(lock);
        return wire->poll(
            [this](const PacketHeader& header, const void* payload) {
                const auto* bytes = static_cast<const uint8_t*>(payload);
                for (size_t i = 0; i < header.payload_bytes; ++i) {
                    if (bytes[i] != pattern(header.message, i)) check::fail(__FILE__, __LINE__, "payload differs");
                }
                uint64_t source;
                std::memcpy(&source, header.src_gid.raw + 4, sizeof source);
                const int from = rank_of(source);
                CHECK(from >= 0 && from < count);
                if (check_order) CHECK_EQ(header.message, received[from]);
                ++received[from];
                last = header.message;
            },
            64);
    }
    // Polls until `done`; a test that waits in vain says for what.
    void wait(const char* what, const std::function<bool()>& done, uint64_t timeout_ms = 20000) {
        const uint64_t end = now_ms() + timeout_ms;
        while (!done()) {
            if (poll() == 0) sched_yield();
            if (now_ms() > end) check::fail(__FILE__, __LINE__, "rank " + std::to_string(rank) + " waits in vain for " + what);
        }
    }
    void barrier(int number, int parties = 0) {
        shared->arrivals[number].fetch_add(1);
        wait("the others", [&] { return shared->arrivals[number].load() >= (parties ? parties : count); });
    }
    bool is_gone(int other) {
        const std::lock_guard guard(lock);
        return wire->is_gone(shared->addresses[other].gid);
    }
    std::string kind_of(int other) { return wire->kind_of(shared->addresses[other].gid); }

    int rank, count;
    uint64_t process_id;
    Shared* shared;
    std::mutex lock;
    std::unique_ptr<ProcessWire> wire;
    PeerAddress address;
    bool check_order = true;
    uint64_t received[kRanksMax] = {};
    uint64_t last = 0;

   private:
    std::vector<uint8_t> buffer_;
};

// Exit codes by rank; 128 + signal for the killed.
inline std::vector<int> run_ranks(int count, const std::function<void(Rank&)>& body, uint64_t timeout_ms = 60000) {
    auto* shared = static_cast<Shared*>(mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    CHECK(shared != MAP_FAILED);
    static int runs = 0;
    ++runs;
    std::vector<uint64_t> ids;
    for (int rank = 0; rank < count; ++rank) ids.push_back(process_id_of(runs, rank));
    for (int rank = 0; rank < count; ++rank) {
        std::fflush(nullptr);
        const pid_t child = fork();
        if (child == 0) {
            int code = 0;
            try {
                Rank self(rank, count, ids[static_cast<size_t>(rank)], shared);
                body(self);
            } catch (const check::Failed&) {
                std::fprintf(stderr, "(rank %d)\n", rank);
                code = 1;
            }
            std::fflush(nullptr);
            _exit(code);
        }
        shared->pids[rank] = child;
    }
    std::vector<int> codes(static_cast<size_t>(count), -1);
    const uint64_t end = now_ms() + timeout_ms;
    for (int rank = 0; rank < count; ++rank) {
        int status = 0;
        while (waitpid(shared->pids[rank], &status, WNOHANG) == 0) {
            if (now_ms() > end) kill(shared->pids[rank], SIGKILL);
            usleep(1000);
        }
        codes[static_cast<size_t>(rank)] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    munmap(shared, sizeof(Shared));
    return codes;
}

inline void run_good(int count, const std::function<void(Rank&)>& body) {
    const std::vector<int> codes = run_ranks(count, body);
    for (int code : codes) CHECK_EQ(code, 0);
}

inline void use_wire(const char* kind) {
    setenv("NVSHMEM_EFA_SOFT_WIRE", kind, 1);
    setenv("NVSHMEM_EFA_SOFT_TCP_ADDR", "127.0.0.1", 1);
}

// A log that a test can read back; gone with the object.
class LogFile {
   public:
    LogFile() {
        char name[] = "/tmp/nvshmem-efa-test-XXXXXX";
        const int fd = mkstemp(name);
        CHECK(fd >= 0);
        close(fd);
        path_ = name;
        setenv("NVSHMEM_EFA_LOG_FILE", name, 1);
    }
    ~LogFile() {
        unsetenv("NVSHMEM_EFA_LOG_FILE");
        unlink(path_.c_str());
    }
    bool has(const char* part) const {
        std::ifstream file(path_);
        std::string line;
        while (std::getline(file, line)) {
            if (line.find(part) != std::string::npos) return true;
        }
        return false;
    }

   private:
    std::string path_;
};

}  // namespace wire_test
