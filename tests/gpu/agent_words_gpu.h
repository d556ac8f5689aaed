// SPDX-License-Identifier: Apache-2.0
// What agent_words needs of a real GPU beyond the core: a context, memory of both kinds, kernels, and its report.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "words.h"

namespace nvshmem_efa::agent_words {

// Ends the program with code 2 and the reason: a machine without a GPU, a driver call that must not fail.
[[noreturn]] void give_up(const std::string& why);
void must(const Status& status, const char* what);

// One GPU, its primary context current on the thread that made it. What it allocates stays until the process ends:
// freeing would wait for kernels that are meant to run.
class Gpu {
   public:
    explicit Gpu(int ordinal);
    uint64_t alloc(size_t bytes);                             // zeroed, cudaMalloc-like
    uint64_t alloc_vmm(size_t piece_bytes, uint32_t pieces);  // zeroed, exportable as file descriptors, RDMA capable
    size_t granularity() const { return granularity_; }
    void* alloc_pinned(size_t bytes);
    // Launches fill_and_answer as Filler does, into a stream of the caller's.
    void launch_filler(uint64_t word, uint8_t bytes, unsigned blocks, cuda::Stream stream);
    // Synchronous, on the test's own stream; fine beside a full GPU.
    void read(void* to, uint64_t from, size_t bytes);
    void write(uint64_t to, const void* from, size_t bytes);
    void fill(uint64_t addr, uint8_t value, size_t bytes);
    void launch(const char* kernel, unsigned blocks, unsigned threads, cuda::Stream stream, void** parameters);
    cuda::Stream make_stream();
    bool is_idle(cuda::Stream stream);
    void wait_idle(cuda::Stream stream, int64_t timeout_ms, const char* what);
    int sms() const { return sms_; }
    const cuda::Driver& driver() const { return *driver_; }
    const std::string& name() const { return name_; }
    // For one Filler at a time, allocated beforehand: allocating may wait for the atomics warp.
    uint64_t* filler_pinned() const { return filler_pinned_; }
    uint64_t filler_halt() const { return filler_halt_; }
    cuda::Stream filler_stream() const { return filler_stream_; }
    int driver_version() const { return driver_version_; }

   private:
    void check(cuda::Result result, const char* what);
    const cuda::Driver* driver_ = nullptr;
    cuda::Context context_ = nullptr;
    cuda::Module kernels_ = nullptr;
    cuda::Stream stream_ = nullptr;
    cuda::Stream filler_stream_ = nullptr;
    uint64_t* filler_pinned_ = nullptr;
    uint64_t filler_halt_ = 0;
    uint8_t* staging_ = nullptr;
    size_t granularity_ = 0;
    int ordinal_ = 0;
    int sms_ = 0;
    int driver_version_ = 0;
    std::string name_;
};

// Holds every SM with two blocks of 1024 threads; block 0 answers each new value of the word through pinned memory.
class Filler {
   public:
    Filler(Gpu& gpu, uint64_t word, uint8_t bytes, unsigned blocks);
    ~Filler();  // ends the kernel through the test's own stream if nobody has
    bool is_everywhere(int64_t timeout_ms) const;  // all blocks run
    bool saw(uint64_t value, int64_t timeout_ms) const;
    void end();

   private:
    Gpu& gpu_;
    uint64_t word_;
    uint8_t bytes_;
    unsigned blocks_;
    uint64_t* pinned_;  // [0] what was seen, [8] blocks started
    bool has_ended_ = false;
};

// Collects checks and timings; prints one JSON object.
class Report {
   public:
    void check(const std::string& name, bool is_good, const std::string& detail = "");
    void skip(const std::string& name, const std::string& why);
    void note(const std::string& name, const std::string& value);  // neither good nor bad: something to know
    void time(const std::string& name, std::vector<double> samples_us);
    int finish(const Gpu& gpu);  // prints; the exit code

   private:
    std::vector<std::string> checks_, times_, notes_;
    int failed_ = 0;
};

double now_us();
template <class Done>
bool poll(int64_t timeout_ms, Done done) {
    for (const double end = now_us() + static_cast<double>(timeout_ms) * 1000; now_us() < end;)
        if (done()) return true;
    return done();
}

void check_ports(Gpu& gpu, Report& report);            // agent_words_port.cpp
void check_peers(Report& report);                      // agent_words_peer.cpp
int own_for_peer(int socket, int ordinal);             // the other process of check_peers

}  // namespace nvshmem_efa::agent_words
