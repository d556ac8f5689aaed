// SPDX-License-Identifier: Apache-2.0
#include "pe_job.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <nvshmem.h>
#include <nvshmemx.h>
#include <unistd.h>

#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace gpu_ops {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kBootstrapSeconds = 60;

struct Watch {
    std::mutex mutex;
    bool armed = false;
    bool started = false;
    Clock::time_point deadline;
    std::string what;
    std::string stage;
};

Watch& watch() {
    static Watch* w = new Watch;  // never destroyed: the thread outlives main's statics
    return *w;
}

void watch_loop() {
    for (;;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        std::string what, at;
        {
            std::lock_guard<std::mutex> lock(watch().mutex);
            if (!watch().armed || Clock::now() < watch().deadline) continue;
            watch().armed = false;
            what = watch().what;
            at = watch().stage;
        }
        event("watchdog", "\"case\":" + quoted(what) + ",\"stage\":" + quoted(at));
        std::this_thread::sleep_for(std::chrono::seconds(45));  // the launcher dumps stacks and kills us well before
        _exit(kExitHang);
    }
}

void write_unique_id(const std::string& path, const nvshmemx_uniqueid_t& id) {
    const std::string part = path + ".part";
    int fd = open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0) die(kExitUsage, "cannot create %s: %s", part.c_str(), strerror(errno));
    if (write(fd, &id, sizeof id) != static_cast<ssize_t>(sizeof id)) die(kExitUsage, "cannot write %s", part.c_str());
    close(fd);
    if (rename(part.c_str(), path.c_str()) != 0) die(kExitUsage, "cannot rename %s: %s", part.c_str(), strerror(errno));
}

void read_unique_id(const std::string& path, nvshmemx_uniqueid_t* id) {
    const auto deadline = Clock::now() + std::chrono::duration<double>(kBootstrapSeconds);
    while (Clock::now() < deadline) {
        int fd = open(path.c_str(), O_RDONLY);
        if (fd >= 0) {
            ssize_t got = read(fd, id, sizeof *id);
            close(fd);
            if (got == static_cast<ssize_t>(sizeof *id)) return;
            die(kExitUsage, "%s holds %zd bytes, not %zu", path.c_str(), got, sizeof *id);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    die(kExitHang, "no unique id at %s within %.0f s; hint: PE 0 did not start", path.c_str(), kBootstrapSeconds);
}

}  // namespace

void die(int code, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::string at;
    {
        std::lock_guard<std::mutex> lock(watch().mutex);
        at = watch().stage;
    }
    event("died", "\"code\":" + std::to_string(code) + ",\"why\":" + quoted(text) + ",\"stage\":" + quoted(at));
    _exit(code);  // not exit(): NVSHMEM's destructors would wait for peers
}

void event(const char* kind, const std::string& fields) {
    // One write, so that lines of several threads do not mix.
    const std::string line = std::string("@@ {\"event\":\"") + kind + "\"" + (fields.empty() ? "" : ",") + fields + "}\n";
    fflush(stdout);
    if (write(1, line.data(), line.size()) < 0) _exit(kExitStopped);
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (unsigned char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += static_cast<char>(c);
        } else if (c < 0x20) {
            out += ' ';
        } else {
            out += static_cast<char>(c);
        }
    }
    return out + "\"";
}

void stage(const char* format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::lock_guard<std::mutex> lock(watch().mutex);
    watch().stage = text;
}

void watchdog(double seconds, const std::string& what) {
    std::lock_guard<std::mutex> lock(watch().mutex);
    watch().armed = seconds > 0;
    watch().deadline =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    watch().what = what;
    if (seconds > 0 && !watch().started) {
        watch().started = true;
        std::thread(watch_loop).detach();
    }
}

void start_pe(Job& job) {
    stage("choose the GPU");
    int gpus = 0;
    CUDA_CHECK(cudaGetDeviceCount(&gpus));
    if (gpus == 0) die(kExitCuda, "no GPU here");
    CUDA_CHECK(cudaSetDevice(job.pe % gpus));
    CUDA_CHECK(cudaFree(nullptr));  // makes the context

    stage("exchange the unique id");
    const std::string path = job.dir + "/unique_id." + std::to_string(job.cycle);
    nvshmemx_uniqueid_t id = NVSHMEMX_UNIQUEID_INITIALIZER;
    if (job.pe == 0) {
        if (int status = nvshmemx_get_uniqueid(&id)) die(kExitUsage, "nvshmemx_get_uniqueid gave %d", status);
        write_unique_id(path, id);
    } else {
        read_unique_id(path, &id);
    }
    nvshmemx_init_attr_t attributes = NVSHMEMX_INIT_ATTR_INITIALIZER;
    if (int status = nvshmemx_set_attr_uniqueid_args(job.pe, job.npes, &id, &attributes))
        die(kExitUsage, "nvshmemx_set_attr_uniqueid_args gave %d", status);
    stage("nvshmem init");
    if (int status = nvshmemx_init_attr(NVSHMEMX_INIT_WITH_UNIQUEID, &attributes))
        die(kExitUsage, "nvshmemx_init_attr gave %d", status);
    if (nvshmem_my_pe() != job.pe || nvshmem_n_pes() != job.npes)
        die(kExitUsage, "NVSHMEM says PE %d of %d, the launcher said %d of %d", nvshmem_my_pe(), nvshmem_n_pes(), job.pe,
            job.npes);
    CUDA_CHECK(cudaStreamCreateWithFlags(&job.stream, cudaStreamNonBlocking));
    int major = 0, minor = 0, patch = 0, driver = 0, runtime = 0;
    nvshmemx_vendor_get_version_info(&major, &minor, &patch);
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, job.pe % gpus));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    char fields[512];
    snprintf(fields, sizeof fields,
             "\"pe\":%d,\"npes\":%d,\"gpu\":%s,\"gpus\":%d,\"nvshmem\":\"%d.%d.%d\",\"cuda_driver\":%d,\"cuda_runtime\":%d,"
             "\"cycle\":%d",
             job.pe, job.npes, quoted(properties.name).c_str(), gpus, major, minor, patch, driver, runtime, job.cycle);
    event("started", fields);
}

void print_stats() {
    void* library = dlopen("libnvshmem_efa.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return;
    using StatsJson = const char* (*)();
    if (auto stats = reinterpret_cast<StatsJson>(dlsym(library, "nvshmem_efa_stats_json")))
        event("stats", std::string("\"counters\":") + stats());
    dlclose(library);
}

void finish_pe(Job& job) {
    stage("nvshmem finalize");
    CUDA_CHECK(cudaStreamSynchronize(job.stream));
    CUDA_CHECK(cudaStreamDestroy(job.stream));
    job.stream = nullptr;
    print_stats();
    nvshmem_finalize();
    ++job.cycle;
}

void meet(const Job& job, const char* where) {
    stage("%s: wait for the stream", where);
    CUDA_CHECK(cudaStreamSynchronize(job.stream));
    stage("%s: host barrier", where);
    nvshmem_barrier_all();
    stage("%s", where);
}

void launch_together(const Job& job, const void* kernel, dim3 grid, dim3 block, void** arguments) {
    if (int status = nvshmemx_collective_launch(kernel, grid, block, arguments, 0, job.stream))
        die(kExitCuda, "nvshmemx_collective_launch gave %d", status);
    LAUNCH_CHECK();
}

}  // namespace gpu_ops
