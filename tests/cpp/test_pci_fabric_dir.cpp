// SPDX-License-Identifier: Apache-2.0
// The folder through which EFA functions of several processes find each other.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "soft_efa/pci/fabric_dir.h"

using namespace nvshmem_efa;
using soft::pci::FabricDir;

namespace {

struct Folder {
    char path[64] = "/tmp/nvshmem-efa-fabric-XXXXXX";
    Folder() { CHECK(mkdtemp(path) != nullptr); }
    ~Folder() { (void)!std::system((std::string("rm -rf ") + path).c_str()); }
    std::string operator/(const char* name) const { return std::string(path) + "/" + name; }
};

std::unique_ptr<FabricDir> open_dir(const std::string& path) {
    std::unique_ptr<FabricDir> fabric;
    CHECK_OK(FabricDir::open(path, &fabric));
    return fabric;
}

PeerAddress address_of(uint8_t number) {
    PeerAddress address;
    address.gid.raw[0] = 0xfe;
    address.gid.raw[15] = number;
    address.extra[3] = static_cast<uint8_t>(number + 1);
    return address;
}

}  // namespace

TEST(functions_share_a_secret_and_find_each_other_while_they_live) {
    const Folder folder;
    const std::string path = folder / "fabric";
    auto first = open_dir(path), second = open_dir(path);
    CHECK(std::memcmp(first->secret().bytes, second->secret().bytes, 32) == 0);
    CHECK(std::memcmp(first->secret().bytes, JobSecret().bytes, 32) != 0);
    CHECK_OK(first->publish(address_of(1)));
    CHECK_OK(second->publish(address_of(2)));
    PeerAddress found;
    CHECK_OK(first->find(address_of(2).gid, &found));
    CHECK_EQ(found.extra[3], 3);
    CHECK(first->find(address_of(3).gid, &found).code() == Code::kPeer);
    second.reset();
    CHECK(first->find(address_of(2).gid, &found).code() == Code::kPeer);
    struct stat about {};
    CHECK_EQ(stat((path + "/secret").c_str(), &about), 0);
    CHECK_EQ(about.st_mode & 0777, 0600u);
    CHECK_EQ(stat(path.c_str(), &about), 0);
    CHECK_EQ(about.st_mode & 0777, 0700u);
}

TEST(a_folder_that_others_may_enter_is_refused) {
    const Folder folder;
    CHECK_EQ(chmod(folder.path, 0755), 0);
    std::unique_ptr<FabricDir> fabric;
    CHECK(FabricDir::open(folder.path, &fabric).code() == Code::kAuth);
    CHECK(FabricDir::open(folder / "no/such", &fabric).code() == Code::kConfig);
}

TEST(files_that_are_not_as_written_are_not_believed) {
    const Folder folder;
    auto fabric = open_dir(folder.path);
    CHECK_OK(fabric->publish(address_of(1)));
    CHECK(fabric->publish(address_of(1)).code() == Code::kResource);  // its place is taken
    const std::string file = folder / "gid-fe000000000000000000000000000001";
    PeerAddress found;
    CHECK_OK(fabric->find(address_of(1).gid, &found));
    CHECK_EQ(chmod(file.c_str(), 0644), 0);
    CHECK(!fabric->find(address_of(1).gid, &found).ok());
    CHECK_EQ(chmod(file.c_str(), 0600), 0);
    CHECK_EQ(truncate(file.c_str(), 127), 0);
    CHECK(!fabric->find(address_of(1).gid, &found).ok());
    CHECK_EQ(unlink(file.c_str()), 0);
    CHECK_EQ(symlink("secret", file.c_str()), 0);
    CHECK(!fabric->find(address_of(1).gid, &found).ok());
    CHECK_EQ(truncate((folder / "secret").c_str(), 3), 0);
    std::unique_ptr<FabricDir> late;
    CHECK(FabricDir::open(folder.path, &late).code() == Code::kAuth);
}

TEST_MAIN()
