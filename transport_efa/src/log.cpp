// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <string>
#include <string_view>

#include "knobs.h"

namespace nvshmem_efa {
namespace {

constexpr size_t kLineBytesMax = 2048;  // below PIPE_BUF, so that lines of several processes do not mix
constexpr std::array<const char*, 5> kLevelNames = {"error", "warn", "info", "debug", "trace"};
constexpr std::array<const char*, 5> kLevelLabels = {"ERROR", "WARN ", "INFO ", "DEBUG", "TRACE"};

// Where lines go. Replaced as a whole by log_configure(); readers take the mutex, which only lines that are printed pay.
struct Sink {
    std::mutex mutex;
    int fd = STDERR_FILENO;
    std::string subsys;  // as in the knob, without the ^
    bool inverted = false;
    std::string host;
};

Sink& sink() {
    static Sink* the_sink = new Sink;  // never destroyed: threads may log while the process exits
    return *the_sink;
}

std::atomic<int> configured_level{-1};
std::atomic<int> shown_pe{-1};

std::string host_name() {
    char name[256] = "";
    if (gethostname(name, sizeof name - 1) != 0) return "unknown-host";
    name[sizeof name - 1] = '\0';
    return std::string(name).substr(0, std::string_view(name).find('.'));
}

std::string expand_path(const std::string& pattern, const std::string& host) {
    std::string path;
    for (size_t i = 0; i < pattern.size(); ++i) {
        const char next = pattern[i] == '%' && i + 1 < pattern.size() ? pattern[i + 1] : '\0';
        if (next == 'h') {
            path += host;
        } else if (next == 'p') {
            path += std::to_string(getpid());
        } else {
            path += pattern[i];
            continue;
        }
        ++i;
    }
    return path;
}

bool list_has(std::string_view list, std::string_view name) {
    while (!list.empty()) {
        const size_t comma = list.find(',');
        if (list.substr(0, comma) == name) return true;
        if (comma == std::string_view::npos) break;
        list.remove_prefix(comma + 1);
    }
    return false;
}

// An error is never filtered out: it may be the only trace of why a job ended.
bool is_wanted(const Sink& to, LogLevel level, const char* subsys) {
    if (level == LogLevel::kError || to.subsys.empty()) return true;
    return list_has(to.subsys, subsys) != to.inverted;
}

void write_line(int fd, const char* line, size_t bytes) {
    while (bytes > 0) {
        const ssize_t written = write(fd, line, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return;  // nowhere to complain to
        line += written;
        bytes -= static_cast<size_t>(written);
    }
}

// Puts "host:pid [pe] LEVEL subsys  " into `line`; gives its length.
size_t write_prefix(char* line, size_t room, const Sink& to, LogLevel level, const char* subsys) {
    char pe[16] = "-";
    if (const int number = shown_pe.load(std::memory_order_relaxed); number >= 0) snprintf(pe, sizeof pe, "%d", number);
    const int length = snprintf(line, room, "%s:%d [%s] %s %s  ", to.host.c_str(), static_cast<int>(getpid()), pe,
                                kLevelLabels[static_cast<size_t>(level)], subsys);
    return length < 0 ? 0 : std::min(static_cast<size_t>(length), room - 1);
}

}  // namespace

Status log_configure(const Knobs& knobs) {
    Sink& to = sink();
    const std::lock_guard lock(to.mutex);
    if (to.host.empty()) to.host = host_name();
    int level = static_cast<int>(LogLevel::kInfo);
    for (size_t i = 0; i < kLevelNames.size(); ++i) {
        if (knobs.log_level == kLevelNames[i]) level = static_cast<int>(i);
    }
    to.inverted = !knobs.log_subsys.empty() && knobs.log_subsys[0] == '^';
    to.subsys = knobs.log_subsys.substr(to.inverted ? 1 : 0);
    if (to.fd != STDERR_FILENO) close(to.fd);
    to.fd = STDERR_FILENO;
    configured_level.store(level, std::memory_order_relaxed);
    if (knobs.log_file.empty()) return {};
    const std::string path = expand_path(knobs.log_file, to.host);
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
        return Status::error(Code::kConfig, "name a file in a folder that exists and that you may write to",
                             "NVSHMEM_EFA_LOG_FILE=%.256s cannot be opened: %s", path.c_str(), strerror(errno));
    }
    to.fd = fd;
    return {};
}

bool log_enabled(LogLevel level) {
    int limit = configured_level.load(std::memory_order_relaxed);
    if (limit < 0) {
        (void)knobs();  // configures the log at first use
        limit = configured_level.load(std::memory_order_relaxed);
    }
    return static_cast<int>(level) <= limit;
}

void log_set_pe(int pe) { shown_pe.store(pe, std::memory_order_relaxed); }

int log_pe() { return shown_pe.load(std::memory_order_relaxed); }

void log_print(LogLevel level, const char* subsys, const char* format, ...) {
    const int saved_errno = errno;
    if (!log_enabled(level)) return;
    char line[kLineBytesMax];
    Sink& to = sink();
    const std::lock_guard lock(to.mutex);
    if (is_wanted(to, level, subsys)) {
        size_t length = write_prefix(line, sizeof line - 1, to, level, subsys);
        const size_t start = length;
        errno = saved_errno;  // for %m
        va_list args;
        va_start(args, format);
        const int wanted = vsnprintf(line + length, sizeof line - 1 - length, format, args);
        va_end(args);
        if (wanted > 0) length += std::min(static_cast<size_t>(wanted), sizeof line - 2 - length);
        for (size_t i = start; i < length; ++i) {
            if (line[i] == '\n' || line[i] == '\r') line[i] = ' ';  // one message is one line
        }
        line[length++] = '\n';
        write_line(to.fd, line, length);
    }
    errno = saved_errno;
}

}  // namespace nvshmem_efa
