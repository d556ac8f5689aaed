// SPDX-License-Identifier: Apache-2.0
// How the processes that play EFA functions find each other: a private folder with the job's secret and a file for each
// device, named by its GID. It stands for the network's own routing, which no device program has to set up.
#pragma once

#include <memory>
#include <string>

#include "fabric/fabric.h"
#include "status.h"

namespace nvshmem_efa::soft::pci {

class FabricDir {
   public:
    // Makes the folder if needed (0700). One that others may enter, or that is somebody else's, is refused (kAuth).
    static Status open(const std::string& path, std::unique_ptr<FabricDir>* fabric);
    ~FabricDir();  // takes our own file away; the secret stays for the others

    const JobSecret& secret() const { return secret_; }
    Status publish(const PeerAddress& self);
    // kPeer when no running device has this GID.
    Status find(const Gid& gid, PeerAddress* address) const;

   private:
    FabricDir(std::string path, int dir_fd) : path_(std::move(path)), dir_fd_(dir_fd) {}
    Status load_secret();
    Status read_file(const char* name, void* bytes, size_t count) const;
    // All of it or nothing, and never in the place of what is there (kResource with errno EEXIST's text).
    Status write_file(const std::string& name, const void* bytes, size_t count) const;

    std::string path_;
    int dir_fd_;
    JobSecret secret_;
    std::string own_file_;
};

}  // namespace nvshmem_efa::soft::pci
