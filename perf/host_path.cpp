// SPDX-License-Identifier: Apache-2.0
// nvshmem-efa-bench-host: what the host path costs the CPU, and what it moves through the software device, beside
// memcpy and a TCP loopback in the same run. JSON on stdout. The figures of the software device are its own, not EFA's.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "null_nic.h"
#include "samples.h"
#include "transport.h"

namespace nvshmem_efa::perf {
namespace {

constexpr uint32_t kBatch = 256;     // posts between two sweeps of completions, below every queue depth
constexpr int kRounds = 2000;
constexpr size_t kHeapBytes = 64u << 20;

[[noreturn]] void die(const char* what, const Status& status) {
    fprintf(stderr, "nvshmem-efa-bench-host: %s: %s\n", what, status.message());
    exit(1);
}
void must(const char* what, const Status& status) {
    if (!status.ok()) die(what, status);
}

// One PE talking to itself: enough to post.
Bootstrap lone_bootstrap() {
    Bootstrap bootstrap;
    bootstrap.allgather = [](const void* send, void* recv, size_t bytes) {
        memcpy(recv, send, bytes);
        return Status();
    };
    bootstrap.barrier = [] { return Status(); };
    return bootstrap;
}

std::string bench_post(const char* name, bool large_slots, size_t bytes, bool copy_source) {
    auto owned = std::make_unique<NullNic>();
    NullNic* nic = owned.get();
    const_cast<NicInfo&>(nic->info()).caps.inline_write = large_slots;
    TransportOptions options;
    options.nics.push_back(std::move(owned));
    options.agent_thread = false;
    std::unique_ptr<Transport> transport;
    must("create", Transport::create(std::move(options), &transport));
    must("connect", transport->connect(lone_bootstrap()));
    std::vector<uint8_t> heap(kBatch * 4096);
    MemHandle handle;
    must("register", transport->register_memory(heap.data(), heap.size(), &handle));
    RmaOp op;
    op.remote_handle = &handle;
    op.local = heap.data();
    op.local_handle = &handle;
    op.bytes = bytes;
    op.copy_source = copy_source;
    Samples post, complete;
    for (int round = 0; round < kRounds; ++round) {
        const double start = now_ns();
        for (uint32_t i = 0; i < kBatch; ++i) {
            op.remote = reinterpret_cast<uint64_t>(heap.data()) + i * bytes;
            must("put", transport->rma(Lane::kProxy, op));
        }
        const double posted = now_ns();
        const uint32_t done = nic->complete_all();
        const double swept = now_ns();
        must("quiet", transport->quiet(Lane::kProxy, 0));
        if (done != kBatch) die("completions", Status::error(Code::kInternal, nullptr, "%u of %u", done, kBatch));
        if (round >= kRounds / 10) {
            post.add((posted - start) / kBatch);
            complete.add((now_ns() - swept) / kBatch);
        }
    }
    char text[640];
    snprintf(text, sizeof text, "{\"case\": \"%s\", \"bytes\": %zu, \"slot_bytes\": %d, \"post\": %s, \"complete\": %s}", name,
             bytes, large_slots ? 128 : 64, post.json("ns/put").c_str(), complete.json("ns/put").c_str());
    return text;
}

// ---- two processes over the software device ----

bool transfer(int fd, void* data, size_t bytes, bool writing) {
    auto* at = static_cast<uint8_t*>(data);
    while (bytes) {
        const ssize_t n = writing ? write(fd, at, bytes) : read(fd, at, bytes);
        if (n <= 0) return false;
        at += n;
        bytes -= static_cast<size_t>(n);
    }
    return true;
}

Bootstrap pair_bootstrap(int pe, int fd) {
    Bootstrap bootstrap;
    bootstrap.pe = pe;
    bootstrap.n_pes = 2;
    bootstrap.allgather = [pe, fd](const void* send, void* recv, size_t bytes) {
        auto* all = static_cast<uint8_t*>(recv);
        memcpy(all + static_cast<size_t>(pe) * bytes, send, bytes);
        const bool ok = transfer(fd, all + static_cast<size_t>(pe) * bytes, bytes, true) &&
                        transfer(fd, all + static_cast<size_t>(1 - pe) * bytes, bytes, false);
        return ok ? Status() : Status::error(Code::kPeer, nullptr, "the other process ended");
    };
    bootstrap.barrier = [fd] {
        char mark = 'b';
        return transfer(fd, &mark, 1, true) && transfer(fd, &mark, 1, false)
                   ? Status()
                   : Status::error(Code::kPeer, nullptr, "the other process ended");
    };
    return bootstrap;
}

struct SoftPe {
    std::unique_ptr<Transport> transport;
    uint8_t* heap = nullptr;
    MemHandle handles[2];
    uint64_t bases[2];
};

void start_soft_pe(SoftPe* pe, const Bootstrap& bootstrap) {
    TransportOptions options;
    OpenOptions open;
    must("knobs", load_knobs());
    options.knobs = knobs();
    options.knobs.mode = "soft";
    must("soft device", open_soft_nics(open, &options.nics));
    must("create", Transport::create(std::move(options), &pe->transport));
    must("connect", pe->transport->connect(bootstrap));
    pe->heap = static_cast<uint8_t*>(mmap(nullptr, kHeapBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(pe->heap, 1, kHeapBytes);
    MemHandle mine;
    must("register", pe->transport->register_memory(pe->heap, kHeapBytes, &mine));
    must("handles", bootstrap.allgather(&mine, pe->handles, sizeof mine));
    const auto base = reinterpret_cast<uint64_t>(pe->heap);
    must("bases", bootstrap.allgather(&base, pe->bases, sizeof base));
    must("barrier", bootstrap.barrier());
}

// `depth` puts, then quiet; the rate of the whole.
Samples soft_puts(SoftPe& pe, size_t bytes, int depth, int rounds) {
    Samples samples;
    for (int round = 0; round < rounds; ++round) {
        const double start = now_ns();
        for (int i = 0; i < depth; ++i) {
            RmaOp op;
            op.pe = 1;
            op.remote = pe.bases[1] + (static_cast<size_t>(i) * bytes) % (kHeapBytes / 2);
            op.remote_handle = &pe.handles[1];
            op.local = pe.heap + (static_cast<size_t>(i) * bytes) % (kHeapBytes / 2);
            op.local_handle = &pe.handles[0];
            op.bytes = bytes;
            must("put", pe.transport->rma(Lane::kProxy, op));
        }
        must("quiet", pe.transport->quiet(Lane::kProxy, 1));
        if (round > rounds / 10) samples.add(static_cast<double>(depth) / (now_ns() - start));
    }
    return samples;
}

std::string bench_soft() {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return "null";
    fflush(stdout);
    const pid_t child = fork();
    const int me = child == 0 ? 1 : 0;
    close(pair[1 - me]);
    const Bootstrap bootstrap = pair_bootstrap(me, pair[me]);
    SoftPe pe;
    start_soft_pe(&pe, bootstrap);
    if (me == 1) {
        must("end", bootstrap.barrier());
        pe.transport.reset();
        _exit(0);
    }
    Samples small = soft_puts(pe, 8, 1000, 200), large = soft_puts(pe, 1 << 20, 16, 60);
    for (double& value : small.values) value *= 1e3;                    // puts per ns -> M/s
    for (double& value : large.values) value *= static_cast<double>(1 << 20);  // GB/s
    must("end", bootstrap.barrier());
    pe.transport.reset();
    int status = 0;
    waitpid(child, &status, 0);
    char text[800];
    snprintf(text, sizeof text, "{\"put_8B_rate\": %s, \"put_1MiB\": %s, \"note\": \"software device, two processes; not EFA\"}",
             small.json("M/s").c_str(), large.json("GB/s").c_str());
    return text;
}

// ---- baselines ----

std::string bench_memcpy() {
    std::vector<uint8_t> from(kHeapBytes, 1), to(kHeapBytes, 2);
    Samples samples;
    for (int round = 0; round < 40; ++round) {
        const double start = now_ns();
        for (size_t at = 0; at < kHeapBytes / 2; at += 1 << 20) memcpy(&to[at], &from[at], 1 << 20);
        if (round > 4) samples.add(static_cast<double>(kHeapBytes / 2) / (now_ns() - start));
    }
    return samples.json("GB/s");
}

std::string bench_tcp() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), length) || listen(listener, 1) ||
        getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length))
        return "null";
    std::vector<uint8_t> buffer(1 << 20, 1);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        const int fd = accept(listener, nullptr, nullptr);
        for (size_t bytes; transfer(fd, &bytes, sizeof bytes, false);) {
            if (!transfer(fd, buffer.data(), bytes, false) || !transfer(fd, buffer.data(), 1, true)) break;
        }
        _exit(0);
    }
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), length)) return "null";
    Samples round_trip, bandwidth;
    const auto exchange = [&](size_t bytes) {
        return transfer(fd, &bytes, sizeof bytes, true) && transfer(fd, buffer.data(), bytes, true) && transfer(fd, buffer.data(), 1, false);
    };
    for (int round = 0; round < 2000; ++round) {
        const double start = now_ns();
        if (!exchange(8)) break;
        if (round > 200) round_trip.add((now_ns() - start) / 1e3);
    }
    for (int round = 0; round < 200; ++round) {
        const double start = now_ns();
        if (!exchange(1 << 20)) break;
        if (round > 20) bandwidth.add(static_cast<double>(1 << 20) / (now_ns() - start));
    }
    close(fd);
    close(listener);
    waitpid(child, nullptr, 0);
    return "{\"acknowledged_8B\": " + round_trip.json("us") + ", \"acknowledged_1MiB\": " + bandwidth.json("GB/s") + "}";
}

std::string cpu_name() {
    FILE* file = fopen("/proc/cpuinfo", "r");
    char line[256];
    std::string name = "unknown";
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "model name", 10) != 0) continue;
        if (const char* colon = strchr(line, ':')) name = colon + 2;
        while (!name.empty() && name.back() == '\n') name.pop_back();
        break;
    }
    if (file) fclose(file);
    return name;
}

}  // namespace
}  // namespace nvshmem_efa::perf

int main() {
    using namespace nvshmem_efa::perf;
    utsname machine{};
    uname(&machine);
    printf("{\"schema\": \"nvshmem-efa/bench-host/1\", \"version\": \"%s\",\n \"machine\": {\"cpu\": \"%s\", \"cores\": %ld, \"kernel\": \"%s\"},\n",
           NVSHMEM_EFA_VERSION, cpu_name().c_str(), sysconf(_SC_NPROCESSORS_ONLN), machine.release);
    printf(" \"post\": [\n  %s,\n", bench_post("put from registered memory", false, 4096, false).c_str());
    printf("  %s,\n", bench_post("put from registered memory", true, 4096, false).c_str());
    printf("  %s,\n", bench_post("p, staged", false, 8, true).c_str());
    printf("  %s],\n", bench_post("p, inline", true, 8, true).c_str());
    printf(" \"soft\": %s,\n", bench_soft().c_str());
    printf(" \"memcpy_1MiB\": %s,\n \"tcp_loopback\": %s}\n", bench_memcpy().c_str(), bench_tcp().c_str());
    return 0;
}
