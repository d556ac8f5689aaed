// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "check.h"
#include "knobs.h"

using namespace nvshmem_efa;

namespace {

// A log file of its own for one case; the environment is set back and the file removed at the end.
class LogFile {
   public:
    explicit LogFile(const char* level = "info", const char* subsys = "") {
        char folder[] = "/tmp/nvshmem-efa-log-XXXXXX";
        CHECK(mkdtemp(folder) != nullptr);
        folder_ = folder;
        path_ = folder_ + "/log." + std::to_string(getpid());
        setenv("NVSHMEM_EFA_LOG_FILE", (folder_ + "/log.%p").c_str(), 1);
        setenv("NVSHMEM_EFA_LOG_LEVEL", level, 1);
        setenv("NVSHMEM_EFA_LOG_SUBSYS", subsys, 1);
        CHECK_OK(load_knobs());
        log_set_pe(-1);
    }
    ~LogFile() {
        unsetenv("NVSHMEM_EFA_LOG_FILE");
        unsetenv("NVSHMEM_EFA_LOG_LEVEL");
        unsetenv("NVSHMEM_EFA_LOG_SUBSYS");
        const Status ignored = load_knobs();
        (void)ignored;
        unlink(path_.c_str());
        rmdir(folder_.c_str());
    }
    std::vector<std::string> lines() const {
        std::ifstream file(path_);
        std::vector<std::string> all;
        for (std::string line; std::getline(file, line);) all.push_back(line);
        return all;
    }

   private:
    std::string folder_;
    std::string path_;
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(a_line_has_host_process_pe_level_subsystem_and_message) {
    LogFile file;
    EFA_LOG(kInfo, "plugin", "mode %s", "soft");
    log_set_pe(3);
    EFA_LOG(kError, "agent", "peer %d", 5);
    const auto lines = file.lines();
    CHECK_EQ(lines.size(), 2u);
    CHECK(has(lines[0], ":" + std::to_string(getpid()) + " [-] INFO  plugin  mode soft"));
    CHECK(has(lines[1], ":" + std::to_string(getpid()) + " [3] ERROR agent  peer 5"));
}

TEST(a_level_lets_through_itself_and_what_is_graver) {
    LogFile file("warn");
    CHECK(log_enabled(LogLevel::kError) && log_enabled(LogLevel::kWarn));
    CHECK(!log_enabled(LogLevel::kInfo) && !log_enabled(LogLevel::kTrace));
    EFA_LOG(kInfo, "rma", "not shown");
    EFA_LOG(kWarn, "rma", "shown");
    CHECK_EQ(file.lines().size(), 1u);
}

TEST(arguments_of_a_line_that_is_not_shown_are_not_evaluated) {
    LogFile file("error");
    int evaluated = 0;
    EFA_LOG(kDebug, "rma", "%d", ++evaluated);
    CHECK_EQ(evaluated, 0);
}

TEST(a_list_of_subsystems_selects_but_never_hides_an_error) {
    LogFile file("trace", "rma,agent");
    EFA_LOG(kInfo, "rma", "one");
    EFA_LOG(kInfo, "agent", "two");
    EFA_LOG(kInfo, "age", "not shown");
    EFA_LOG(kInfo, "knobs", "not shown");
    EFA_LOG(kError, "knobs", "three");
    const auto lines = file.lines();
    CHECK_EQ(lines.size(), 3u);
    CHECK(has(lines[2], "three"));
}

TEST(a_leading_caret_inverts_the_list) {
    LogFile file("trace", "^rma,agent");
    EFA_LOG(kInfo, "rma", "not shown");
    EFA_LOG(kTrace, "agent", "not shown");
    EFA_LOG(kTrace, "knobs", "shown");
    CHECK_EQ(file.lines().size(), 1u);
}

TEST(a_message_of_several_lines_or_of_any_length_becomes_one_line) {
    LogFile file;
    const std::string long_text(5000, 'x');
    EFA_LOG(kInfo, "rma", "first\nsecond\r\nthird");
    EFA_LOG(kInfo, "rma", "%s", long_text.c_str());
    EFA_LOG(kInfo, "rma", "after");
    const auto lines = file.lines();
    CHECK_EQ(lines.size(), 3u);
    CHECK(has(lines[0], "first second  third"));
    CHECK(lines[1].size() > 1500 && lines[1].size() <= 2048);
    CHECK(has(lines[2], "after"));
}

TEST(lines_of_threads_and_of_processes_do_not_mix) {
    LogFile file;
    constexpr int kWriters = 4, kEach = 200;
    const std::string body(300, 'y');
    const pid_t child = fork();
    auto write_all = [&] {
        for (int i = 0; i < kEach; ++i) EFA_LOG(kInfo, "rma", "<%s>", body.c_str());
    };
    if (child == 0) {
        write_all();
        _exit(0);
    }
    std::vector<std::thread> writers;
    for (int i = 0; i < kWriters; ++i) writers.emplace_back(write_all);
    for (std::thread& writer : writers) writer.join();
    int result = 0;
    CHECK_EQ(waitpid(child, &result, 0), child);
    const auto lines = file.lines();
    CHECK_EQ(lines.size(), static_cast<size_t>((kWriters + 1) * kEach));
    for (const std::string& line : lines) CHECK(has(line, "<" + body + ">"));
}

TEST(a_log_file_that_cannot_be_opened_is_a_named_error_and_leaves_stderr) {
    setenv("NVSHMEM_EFA_LOG_FILE", "/nonexistent-folder/log", 1);
    const Status status = load_knobs();
    unsetenv("NVSHMEM_EFA_LOG_FILE");
    CHECK_EQ(status.code(), Code::kConfig);
    CHECK(has(status.message(), "NVSHMEM_EFA_LOG_FILE=/nonexistent-folder/log"));
    CHECK(has(status.message(), "hint: "));
    CHECK_OK(load_knobs());
}

TEST(load_knobs_logs_an_unknown_setting_once_with_the_nearest_name) {
    setenv("NVSHMEM_EFA_MOED", "soft", 1);
    std::vector<std::string> lines;
    {
        LogFile file;
        lines = file.lines();
    }
    unsetenv("NVSHMEM_EFA_MOED");
    CHECK_EQ(lines.size(), 1u);
    CHECK(has(lines[0], "WARN  knobs  NVSHMEM_EFA_MOED is not a setting"));
    CHECK(has(lines[0], "NVSHMEM_EFA_MODE?"));
}

TEST(logging_keeps_errno) {
    LogFile file;
    errno = 42;
    EFA_LOG(kInfo, "rma", "anything");
    CHECK_EQ(errno, 42);
}

TEST_MAIN()
