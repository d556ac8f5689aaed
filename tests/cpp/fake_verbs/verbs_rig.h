// SPDX-License-Identifier: Apache-2.0
// A machine with EFA devices for the verbs tests: made-up sysfs, fake libraries, and ways to break both.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "fabric/verbs.h"
#include "fake_device.h"
#include "machine_tree.h"

namespace fake {

inline const std::string kIbverbs = std::string(FAKE_VERBS_DIR) + "/libibverbs.so.1";
inline const std::string kEfa = std::string(FAKE_VERBS_DIR) + "/libefa.so.1";

class Rig {
   public:
    // EFA devices "efa_0".. on one switch with the GPU 0000:53:00.0. An mlx5 device comes first, as on p6-b200.
    explicit Rig(int n_devices = 1) {
        tree.gpu("pci0000:44/0000:44:01.0", "0000:53:00.0", 0);
        tree.mlx5("pci0000:00", "0000:05:00.0", 0, "mlx5_0");
        for (int i = 0; i < n_devices; ++i) {
            tree.efa("pci0000:44/0000:44:01.0", "0000:4" + std::to_string(i) + ":00.0", 0, "efa_" + std::to_string(i));
        }
        renew(n_devices);
        use_machine();
    }

    // Forgets calls, failures and answers, for another go on the same machine.
    void renew(int n_devices) {
        nics.clear();
        reset();
        state().devices.push_back("mlx5_0");
        for (int i = 0; i < n_devices; ++i) state().devices.push_back("efa_" + std::to_string(i));
    }

    ~Rig() {
        nics.clear();
        std::error_code ignored;
        if (!copies_.empty()) std::filesystem::remove_all(copies_, ignored);
    }
    Rig(const Rig&) = delete;
    Rig& operator=(const Rig&) = delete;

    void use_machine() {
        machine.libibverbs = kIbverbs;
        machine.libefa = kEfa;
        machine.sysfs = tree.sys();
        machine.dev = tree.dev();
        machine.memlock_bytes = nvshmem_efa::verbs::kMemlockUnlimited;
        machine.export_dmabuf = [this](const void* addr, size_t bytes, nvshmem_efa::verbs::Dmabuf* dmabuf) {
            ++exports;
            exported_addr = addr;
            exported_bytes = bytes;
            if (!export_error.empty()) {
                return nvshmem_efa::Status::error(nvshmem_efa::Code::kUnsupported, "test", "%s", export_error.c_str());
            }
            last_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
            *dmabuf = nvshmem_efa::verbs::Dmabuf(last_fd, 0x1000);
            return nvshmem_efa::Status();
        };
    }

    nvshmem_efa::Status open_all(const nvshmem_efa::OpenOptions& options = {}) {
        return nvshmem_efa::verbs::open_nics(machine, options, &nics);
    }

    nvshmem_efa::Nic& open_one() {
        auto status = open_all();
        if (!status.ok()) check::fail(__FILE__, __LINE__, status.message());
        state().calls.clear();
        return *nics.at(0);
    }

    // A copy of the library in which the loader cannot find `symbol`: its name is changed, its hash is not.
    std::string without_symbol(const std::string& library, const std::string& symbol) {
        std::ifstream in(library, std::ios::binary);
        std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
        const std::string wanted = std::string(1, '\0') + symbol + std::string(1, '\0');
        size_t count = 0;
        for (size_t at = bytes.find(wanted); at != std::string::npos; at = bytes.find(wanted, at + 1), ++count) {
            bytes[at + 1] = '#';
        }
        if (count == 0) check::fail(__FILE__, __LINE__, "no " + symbol + " in " + library);
        if (copies_.empty()) {  // not in the tree: that may lie where nothing can be executed
            std::string pattern = (std::filesystem::temp_directory_path() / "efa-library-XXXXXX").string();
            copies_ = mkdtemp(pattern.data());
        }
        const std::string copy =
            (copies_ / ("without-" + symbol + "-" + std::filesystem::path(library).filename().string())).string();
        std::ofstream(copy, std::ios::binary) << bytes;
        return copy;
    }

    MachineTree tree;
    nvshmem_efa::verbs::Machine machine;
    std::vector<std::unique_ptr<nvshmem_efa::Nic>> nics;
    int exports = 0, last_fd = -1;
    const void* exported_addr = nullptr;
    size_t exported_bytes = 0;
    std::string export_error;

   private:
    std::filesystem::path copies_;
};

inline bool is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }

inline std::vector<std::string> call_names() {
    std::vector<std::string> names;
    for (const Call& call : state().calls) names.push_back(call.name);
    return names;
}

inline std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
    return text;
}

// The n-th recorded call of this name.
inline const Call& call(const std::string& name, size_t n = 0) {
    for (const Call& candidate : state().calls) {
        if (candidate.name == name && n-- == 0) return candidate;
    }
    check::fail(__FILE__, __LINE__, "no such call: " + name + " in " + joined(call_names()));
}

inline size_t count_calls(const std::string& name) {
    const auto names = call_names();
    return static_cast<size_t>(std::count(names.begin(), names.end(), name));
}

inline void check_nothing_left() {
    for (const auto& [kind, count] : state().live) {
        if (count != 0) check::fail(__FILE__, __LINE__, std::to_string(count) + " left of " + kind);
    }
    for (const std::string& violation : state().violations) check::fail(__FILE__, __LINE__, violation);
}

// ---- shared by the tests of objects ----

inline nvshmem_efa::Cq make_cq(nvshmem_efa::Nic& nic, uint32_t depth = 256) {
    nvshmem_efa::Cq cq;
    CHECK_OK(nic.create_cq({.depth = depth}, &cq));
    return cq;
}

inline nvshmem_efa::QpAttr qp_attr(const nvshmem_efa::Cq& send, const nvshmem_efa::Cq& recv) {
    nvshmem_efa::QpAttr attr;
    attr.send_cq = send.handle;
    attr.recv_cq = recv.handle;
    attr.sq_depth = 128;
    attr.rq_depth = 64;
    attr.qkey = 0x1234abcd;
    return attr;
}

inline nvshmem_efa::PeerAddress peer(uint8_t id) {
    nvshmem_efa::PeerAddress address;
    for (int i = 0; i < 16; ++i) address.gid.raw[i] = static_cast<uint8_t>(id + i);
    return address;
}

// All bytes are zero but those of the given (offset, size) pairs.
inline void check_rest_is_zero(const std::vector<uint8_t>& bytes, const std::vector<std::pair<size_t, size_t>>& set) {
    for (size_t i = 0; i < bytes.size(); ++i) {
        bool expected = false;
        for (const auto& [offset, size] : set) expected = expected || (i >= offset && i < offset + size);
        if (!expected && bytes[i] != 0) check::fail(__FILE__, __LINE__, "byte " + std::to_string(i) + " is set");
    }
}

}  // namespace fake
