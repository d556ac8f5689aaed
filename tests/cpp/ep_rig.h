// SPDX-License-Identifier: Apache-2.0
// Ranks of the expert-parallel exchange as threads of one process, each with a group of its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "check.h"
#include "ep_api.h"
#include "status.h"

namespace ep_rig {

using nvshmem_efa::Code;

// The allgather of a process group, among threads.
class Meeting {
 public:
    explicit Meeting(int n) : n_(n) {}
    void allgather(int rank, const void* send, void* recv, size_t bytes) {
        std::unique_lock held(lock_);
        if (bytes_.size() < bytes * static_cast<size_t>(n_)) bytes_.resize(bytes * static_cast<size_t>(n_));
        std::memcpy(bytes_.data() + bytes * static_cast<size_t>(rank), send, bytes);
        wait(held);
        std::memcpy(recv, bytes_.data(), bytes * static_cast<size_t>(n_));
        wait(held);
    }
    void barrier() {
        std::unique_lock held(lock_);
        wait(held);
    }

 private:
    void wait(std::unique_lock<std::mutex>& held) {
        const uint64_t round = round_;
        if (++here_ == n_) {
            here_ = 0;
            ++round_;
            wake_.notify_all();
            return;
        }
        wake_.wait(held, [&] { return round_ != round; });
    }
    const int n_;
    std::mutex lock_;
    std::condition_variable wake_;
    int here_ = 0;
    uint64_t round_ = 0;
    std::vector<uint8_t> bytes_;
};

inline ep_options default_options(int n_ranks) {
    ep_options options = {};
    options.bytes = sizeof options;
    options.n_ranks = n_ranks;
    options.nvlink_ranks = n_ranks;
    options.nvlink_for_ll = 1;
    options.workers = 1;
    options.nvl_bytes = 1 << 20;
    options.timeout_ms = 20000;
    return options;
}

// What the last call of this thread failed with.
struct Error {
    int code_number = 0;
    std::string text;
    Code code() const { return static_cast<Code>(code_number); }
    const char* message() const { return text.c_str(); }
    bool ok() const { return code_number == 0; }
};
// Of an API call's result: for CHECK_OK and CHECK_FAILS.
inline Error error_of(int result) {
    if (result == 0) return {};
    int code = 0;
    const char* text = ep_last_error(&code);
    return {result, code == result ? text : "ep_last_error() has another number"};
}

class Ranks {
 public:
    // `change` is given each rank's options.
    explicit Ranks(int n, const std::function<void(ep_options&)>& change = nullptr) : n_(n), groups_(static_cast<size_t>(n)), meeting_(n) {
        on_all_threads([&](int rank) {
            const Error error = open(rank, change);
            if (!error.ok()) check::fail(__FILE__, __LINE__, "ep_open: " + error.text);
        });
    }
    struct Closed {};
    // Opens nothing: for tests of ep_open() itself.
    Ranks(int n, Closed) : n_(n), groups_(static_cast<size_t>(n)), meeting_(n) {}
    ~Ranks() {
        for (ep_group* group : groups_)
            if (group) ep_abandon(group);
    }

    Error open(int rank, const std::function<void(ep_options&)>& change) {
        ep_options options = default_options(n_);
        options.rank = rank;
        if (change) change(options);
        struct Context {
            Ranks* ranks;
            int rank;
        } context{this, rank};
        const auto gather = [](void* to, const void* send, void* recv, int64_t bytes) {
            Context* const c = static_cast<Context*>(to);
            c->ranks->meeting_.allgather(c->rank, send, recv, static_cast<size_t>(bytes));
            return 0;
        };
        return error_of(ep_open(&options, gather, &context, &groups_[static_cast<size_t>(rank)]));
    }

    // Runs `body` on a thread for each rank; the first failure is this call's.
    void on_all(const std::function<void(int rank, ep_group* group)>& body) {
        on_all_threads([&](int rank) { body(rank, groups_[static_cast<size_t>(rank)]); });
    }
    void on_all_threads(const std::function<void(int rank)>& body) {
        std::vector<std::thread> threads;
        std::atomic<bool> failed{false};
        for (int rank = 0; rank < n_; ++rank)
            threads.emplace_back([&, rank] {
                try {
                    body(rank);
                } catch (const check::Failed&) {
                    failed = true;
                }
            });
        for (std::thread& thread : threads) thread.join();
        if (failed) throw check::Failed{};
    }
    void close_all() {
        on_all_threads([&](int rank) {
            ep_group* const group = groups_[static_cast<size_t>(rank)];
            groups_[static_cast<size_t>(rank)] = nullptr;
            CHECK_OK(error_of(ep_close(group)));
        });
    }

    int size() const { return n_; }
    ep_group*& group(int rank) { return groups_[static_cast<size_t>(rank)]; }
    Meeting& meeting() { return meeting_; }

 private:
    const int n_;
    std::vector<ep_group*> groups_;
    Meeting meeting_;
};

}  // namespace ep_rig
