// SPDX-License-Identifier: Apache-2.0
// Runs nvshmem-efa-pe as a user would: one process for each PE, each with its own arguments and settings.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace pe_program {

using Clock = std::chrono::steady_clock;
using Settings = std::map<std::string, std::string>;

struct Outcome {
    int exit_code = -1;  // 128 + signal when one ended it
    std::string output;  // the record
    std::string errors;
    double seconds = 0;
};

struct Process {
    pid_t pid = -1;
    int output = -1, errors = -1;
    Clock::time_point started;
};

inline Process start(const std::vector<std::string>& arguments, const Settings& settings) {
    int output[2], errors[2];
    if (pipe2(output, O_CLOEXEC) != 0 || pipe2(errors, O_CLOEXEC) != 0) check::fail(__FILE__, __LINE__, "pipe failed");
    Process process;
    process.started = Clock::now();
    process.pid = fork();
    if (process.pid == 0) {
        dup2(output[1], 1);
        dup2(errors[1], 2);
        for (const auto& [name, value] : settings) setenv(name.c_str(), value.c_str(), 1);
        std::vector<char*> argv{const_cast<char*>(PE_PROGRAM)};
        for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
        argv.push_back(nullptr);
        execv(PE_PROGRAM, argv.data());
        _exit(127);
    }
    close(output[1]);
    close(errors[1]);
    process.output = output[0];
    process.errors = errors[0];
    return process;
}

// Reads until both ends are closed, which is the end of the process and of what it started.
inline Outcome finish(Process& process, int seconds_max) {
    Outcome outcome;
    const auto end = process.started + std::chrono::seconds(seconds_max);
    pollfd entries[2] = {{process.output, POLLIN, 0}, {process.errors, POLLIN, 0}};
    while (entries[0].fd >= 0 || entries[1].fd >= 0) {
        if (Clock::now() > end) {
            kill(process.pid, SIGKILL);
            waitpid(process.pid, nullptr, 0);
            check::fail(__FILE__, __LINE__,
                        "a PE did not end within " + std::to_string(seconds_max) + " s; it said:\n" + outcome.errors);
        }
        if (poll(entries, 2, 100) <= 0) continue;
        for (int i = 0; i < 2; ++i) {
            if (entries[i].fd < 0 || !entries[i].revents) continue;
            char buffer[65536];
            const ssize_t n = read(entries[i].fd, buffer, sizeof buffer);
            if (n > 0) {
                (i ? outcome.errors : outcome.output).append(buffer, static_cast<size_t>(n));
            } else {
                close(entries[i].fd);
                entries[i].fd = -1;
            }
        }
    }
    int status = 0;
    waitpid(process.pid, &status, 0);
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.seconds = std::chrono::duration<double>(Clock::now() - process.started).count();
    return outcome;
}

inline Outcome run(const std::vector<std::string>& arguments, const Settings& settings, int seconds_max) {
    Process process = start(arguments, settings);
    return finish(process, seconds_max);
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// What must be the same before and after: shared memory, sockets of ours, children.
class LeftBehind {
   public:
    LeftBehind() : shared_memory_(shared_memory()), sockets_(sockets()) {}
    void check_nothing() const {
        // Other tests run beside this one: only what is there now, is new, and stays while theirs go, is ours.
        std::set<std::string> new_memory = shared_memory(), new_sockets = sockets();
        std::string left;
        for (int tries = 0; tries < 400; ++tries) {
            new_memory = intersection(new_memory, shared_memory());
            new_sockets = intersection(new_sockets, sockets());
            left = difference(new_memory, shared_memory_) + difference(new_sockets, sockets_);
            if (left.empty()) break;
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
        if (!left.empty()) check::fail(__FILE__, __LINE__, "left behind: " + left);
        const pid_t child = waitpid(-1, nullptr, WNOHANG);
        if (child != -1 || errno != ECHILD) check::fail(__FILE__, __LINE__, "a child process is left");
    }

   private:
    static std::set<std::string> shared_memory() {
        std::set<std::string> names;
        std::error_code error;
        for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", error))
            names.insert(entry.path().string());
        return names;
    }
    static std::set<std::string> sockets() {
        std::set<std::string> names;
        std::ifstream table("/proc/net/unix");
        for (std::string line; std::getline(table, line);) {
            const size_t at = line.find('@');
            if (at != std::string::npos && line.find("efa", at) != std::string::npos) names.insert(line.substr(at));
        }
        return names;
    }
    static std::string difference(const std::set<std::string>& now, const std::set<std::string>& before) {
        std::string list;
        for (const std::string& name : now)
            if (!before.count(name)) list += name + " ";
        return list;
    }
    static std::set<std::string> intersection(const std::set<std::string>& one, const std::set<std::string>& other) {
        std::set<std::string> both;
        for (const std::string& name : one)
            if (other.count(name)) both.insert(name);
        return both;
    }
    std::set<std::string> shared_memory_, sockets_;
};

}  // namespace pe_program
