// SPDX-License-Identifier: Apache-2.0
// nvshmem-efa-pci without a virtual machine: its options, and the peers that its guest names.
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "check.h"
#include "soft_efa/pci/program.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft::pci;

namespace {

struct Folder {
    char path[64] = "/tmp/nvshmem-efa-program-XXXXXX";
    Folder() { CHECK(mkdtemp(path) != nullptr); }
    ~Folder() { std::filesystem::remove_all(path); }
    std::filesystem::path operator/(const std::string& name) const { return std::filesystem::path(path) / name; }
};

Status make_program(const Folder& folder, const std::string& name, const char* fault, std::unique_ptr<Program>* made) {
    const std::string socket = folder / name, fabric = folder / "fabric";
    std::vector<std::string> words = {"nvshmem-efa-pci", "--socket", socket, "--fabric", fabric};
    if (fault) words.insert(words.end(), {"--fault", fault});
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    unsetenv("NVSHMEM_EFA_SOFT_FAULT");
    ProgramOptions options;
    EFA_TRY(parse_arguments(static_cast<int>(arguments.size()), arguments.data(), &options));
    return Program::create(options, made);
}

std::filesystem::path only_address_in(const std::filesystem::path& fabric) {
    std::filesystem::path found;
    for (const auto& entry : std::filesystem::directory_iterator(fabric)) {
        if (entry.path().filename().string().rfind("gid-", 0) != 0) continue;
        CHECK(found.empty());
        found = entry.path();
    }
    CHECK(!found.empty());
    return found;
}

Gid gid_of(const std::filesystem::path& address) {
    const std::string digits = address.filename().string().substr(4);
    Gid gid;
    for (size_t i = 0; i < sizeof gid.raw; ++i)
        gid.raw[i] = static_cast<uint8_t>(std::stoul(digits.substr(2 * i, 2), nullptr, 16));
    return gid;
}

}  // namespace

TEST(a_guest_may_name_peers_that_run_that_were_killed_and_that_never_were) {
    const Folder folder;
    std::unique_ptr<Program> killed, running;
    CHECK_OK(make_program(folder, "killed", nullptr, &killed));
    const std::filesystem::path address = only_address_in(folder / "fabric"), kept = folder / "kept";
    const Gid gid = gid_of(address);
    std::filesystem::copy_file(address, kept);
    killed.reset();
    std::filesystem::copy_file(kept, address);  // as after SIGKILL: nobody took it away
    std::filesystem::permissions(address, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
    CHECK_OK(make_program(folder, "running", nullptr, &running));
    CHECK_OK(running->find_peer(gid));
    CHECK_OK(running->find_peer(gid));  // and again, once it is known to be gone
    Gid nobody;
    nobody.raw[0] = 0xfe;
    CHECK_OK(running->find_peer(nobody));
}

TEST(a_fault_that_is_not_of_this_device_is_named) {
    const Folder folder;
    std::unique_ptr<Program> program;
    CHECK_FAILS(make_program(folder, "a", "dead_peer=0@5", &program), Code::kConfig, "dead_rail=0@");
    CHECK_FAILS(make_program(folder, "a", "dead_rail=1@5", &program), Code::kConfig, "dead_rail=0@");
    CHECK_OK(make_program(folder, "a", "dead_rail=0@5", &program));
}

TEST_MAIN()
