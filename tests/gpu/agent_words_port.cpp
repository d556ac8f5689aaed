// SPDX-License-Identifier: Apache-2.0
// The software device's memory port on a real GPU: every direction, idle and with every SM held.
#include <cstring>

#include "agent_words_gpu.h"
#include "soft_efa/memory_cuda.h"

namespace nvshmem_efa::agent_words {
namespace {

using soft::MemoryAddr;
using soft::MemoryPort;

constexpr size_t kRoom = 1 << 20;

struct Route {
    const char* name;
    MemoryAddr to, from;
};

// False when the copy did not end in time; it stays in the stream.
bool copy_once(MemoryPort& port, const Route& route, size_t bytes, int64_t timeout_ms, double* us) {
    const double start = now_us();
    const auto ticket = port.copy(route.to, route.from, bytes);
    port.flush();
    const bool has_ended = poll(timeout_ms, [&] { return port.done(ticket); });
    *us = now_us() - start;
    return has_ended;
}

std::unique_ptr<MemoryPort> make(size_t bounce_bytes) {
    soft::CudaPortOptions options;
    options.same_gpu_bounce_bytes = bounce_bytes;
    std::unique_ptr<MemoryPort> port;
    must(soft::make_cuda_memory_port(1, options, &port), "the memory port");
    return port;
}

bool time_route(MemoryPort& port, const Route& route, const std::string& where, Report& report) {
    for (size_t bytes : {size_t{8}, size_t{512}, size_t{7168}, size_t{65536}, size_t{1} << 20}) {
        const std::string name = std::string(route.name) + ", " + std::to_string(bytes) + " bytes, " + where;
        std::vector<double> samples;
        for (int turn = 0; turn < 200; ++turn) {
            double us = 0;
            if (!copy_once(port, route, bytes, 3000, &us)) {
                report.note("does not end: " + name, "after " + std::to_string(turn) + " good copies");
                return false;
            }
            samples.push_back(us);
        }
        report.time(name, samples);
    }
    return true;
}

void check_content(Gpu& gpu, MemoryPort& port, uint64_t device, uint64_t other, Report& report) {
    std::vector<uint8_t> sent(kRoom), got(kRoom);
    for (size_t i = 0; i < kRoom; ++i) sent[i] = static_cast<uint8_t>(i * 31 + i / 1009);
    double us = 0;
    const MemoryAddr host{MemoryKind::kHost, reinterpret_cast<uint64_t>(sent.data())};
    const MemoryAddr back{MemoryKind::kHost, reinterpret_cast<uint64_t>(got.data())};
    bool is_good = copy_once(port, {"", {MemoryKind::kCuda, device}, host}, kRoom, 5000, &us) &&
                   copy_once(port, {"", {MemoryKind::kCuda, other}, {MemoryKind::kCuda, device}}, 60001, 5000, &us) &&
                   copy_once(port, {"", back, {MemoryKind::kCuda, other}}, 60001, 5000, &us);
    is_good = is_good && std::memcmp(sent.data(), got.data(), 60001) == 0;
    std::vector<uint8_t> read(kRoom);
    gpu.read(read.data(), device, kRoom);
    report.check("port, bytes arrive whole (pageable, GPU, same GPU)", is_good && read == sent && port.error().ok());
}

}  // namespace

void check_ports(Gpu& gpu, Report& report) {
    const uint64_t device = gpu.alloc(kRoom), other = gpu.alloc(kRoom), word = gpu.alloc(64);
    auto bounced = make(kRoom);
    auto direct = make(0);
    const uint64_t pinned = reinterpret_cast<uint64_t>(bounced->alloc_host(kRoom));
    MemoryShare share;
    for (uint64_t addr : {device, other})
        for (MemoryPort* port : {bounced.get(), direct.get()})
            must(port->add_local({reinterpret_cast<void*>(addr), kRoom, MemoryKind::kCuda, 0}, &share), "add_local");
    check_content(gpu, *bounced, device, other, report);
    const Route in{"port, pinned to GPU", {MemoryKind::kCuda, device}, {MemoryKind::kHost, pinned}};
    const Route out{"port, GPU to pinned", {MemoryKind::kHost, pinned}, {MemoryKind::kCuda, device}};
    const Route within{"port, within the GPU through pinned memory", {MemoryKind::kCuda, other}, {MemoryKind::kCuda, device}};
    Route straight = within;
    straight.name = "port, within the GPU directly";
    for (const Route& route : {in, out, within}) time_route(*bounced, route, "GPU idle", report);
    time_route(*direct, straight, "GPU idle", report);
    {
        Filler filler(gpu, word, 8, static_cast<unsigned>(2 * gpu.sms()));
        if (!filler.is_everywhere(10000)) return report.check("port on a full GPU", false, "the GPU is not full");
        for (const Route& route : {in, out, within})
            report.check(std::string(route.name) + " ends on a full GPU", time_route(*bounced, route, "GPU full", report));
        const bool ends = time_route(*direct, straight, "GPU full", report);
        report.note("direct copies within a full GPU end", ends ? "yes" : "NO: keep NVSHMEM_EFA_SOFT_SAME_GPU_BOUNCE on");
    }
    bounced->free_host(reinterpret_cast<void*>(pinned));
}

}  // namespace nvshmem_efa::agent_words
