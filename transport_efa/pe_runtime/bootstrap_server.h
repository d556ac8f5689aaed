// SPDX-License-Identifier: Apache-2.0
// PE 0's half of the bootstrap: a thread that collects one frame from every PE and answers all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap.h"
#include "bootstrap_wire.h"

namespace nvshmem_efa::pe {

class BootstrapServer {
   public:
    // Binds the job's socket, so that the name is taken when this returns, and starts the thread.
    static Status start(const BootstrapOptions& options, std::unique_ptr<BootstrapServer>* server);
    ~BootstrapServer();  // ends the thread at once

    // Waits until every PE has left or the deadline has passed.
    void wait_all_left(uint64_t timeout_ms);

   private:
    struct Client {
        int fd = -1;
        int pe = -1;  // -1: has not said who it is
        int pid = 0;
        uint64_t joined_by_ns = 0;  // a connection that says nothing is dropped then
        bool has_left = false;
        bool is_waiting = false;  // its frame of the collective under way is here
        size_t received = 0;      // bytes of header and payload so far
        FrameHeader header;
        std::vector<char> payload;
        std::vector<char> collected;  // its part of the collective under way
    };

    explicit BootstrapServer(const BootstrapOptions& options) : options_(options) {}
    void run();
    bool is_finished() const;
    void accept_client();
    void read_client(Client& client);
    bool take_bytes(Client& client);  // true when a whole frame is there
    void handle_frame(Client& client);
    void handle_join(Client& client);
    void finish_collective();
    void reply(Client& client, const void* payload, size_t bytes);
    void reply_failure(Client& client);
    void lost(Client& client, const char* how);
    void broadcast_error(Code code, const std::string& text);
    void check_deadlines();
    std::string missing_pes() const;
    void close_client(Client& client);

    BootstrapOptions options_;
    int listen_fd_ = -1;
    int stop_fd_ = -1;  // eventfd: the owner wants the thread to end
    int left_fd_ = -1;  // eventfd: everybody has left
    std::vector<Client> clients_;
    int n_joined_ = 0;
    bool is_failed_ = false;
    Code failure_code_ = Code::kOk;
    std::string failure_;
    bool is_collecting_ = false;
    uint64_t collect_end_ns_ = 0;
    FrameHeader collective_;  // what the first PE of the collective under way asked for
    std::thread thread_;
};

}  // namespace nvshmem_efa::pe
