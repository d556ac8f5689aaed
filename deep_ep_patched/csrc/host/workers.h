// SPDX-License-Identifier: Apache-2.0
// Threads that share one loop with their caller.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nvshmem_efa::ep {

class Workers {
 public:
    explicit Workers(int n);  // the caller included; 1: no thread
    ~Workers();
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    // Calls body(from, to) for parts of [0, n), each thread one part. What bodies wrote is seen by the caller on return.
    // A body throws nothing. One caller at a time.
    using Body = std::function<void(int64_t from, int64_t to)>;
    void split(int64_t n, const Body& body);

 private:
    void run(int worker);
    void work(int worker);

    const int n_;
    std::mutex lock_;
    std::condition_variable wake_, idle_;
    uint64_t round_ = 0;
    int busy_ = 0;
    bool stop_ = false;
    int64_t items_ = 0;
    const Body* body_ = nullptr;
    std::vector<std::thread> threads_;
};

}  // namespace nvshmem_efa::ep
