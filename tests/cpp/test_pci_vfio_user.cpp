// SPDX-License-Identifier: Apache-2.0
// The vfio-user server with a client that keeps the rules, in the order in which QEMU asks.
#include <linux/pci_regs.h>

#include "vfio_user_rig.h"

using namespace pci_test;

namespace {

constexpr uint32_t kTrigger = VFIO_IRQ_SET_ACTION_TRIGGER, kEventfd = VFIO_IRQ_SET_DATA_EVENTFD, kNone = VFIO_IRQ_SET_DATA_NONE;
constexpr uint32_t kMsix = VFIO_PCI_MSIX_IRQ_INDEX, kConfig = VFIO_PCI_CONFIG_REGION_INDEX;
constexpr uint32_t kMsixFlags = 0x50 + PCI_MSIX_FLAGS;

struct Eventfd {
    Fd fd{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    uint64_t take() const {
        uint64_t count = 0;
        return read(fd.get(), &count, sizeof count) == sizeof count ? count : 0;
    }
};

struct Connected : Rig {
    Client client{path};
    Connected() { handshake(client); }
    void enable_msix() { CHECK_EQ(write(client, kConfig, kMsixFlags, PCI_MSIX_FLAGS_ENABLE, 2), 0u); }
};

}  // namespace

TEST(the_version_reply_offers_what_the_client_knows) {
    Rig rig;
    const auto offered = [&](const std::string& text, bool has_text) {
        Client client(rig.path);
        std::vector<uint8_t> body = bytes_of(VfioUserVersion{0, 3});
        if (has_text) body = body + std::vector<uint8_t>(text.c_str(), text.c_str() + text.size() + 1);
        const Reply reply = rig.ask(client, VfioUserCommand::kVersion, body);
        CHECK(!reply.is_error());
        CHECK_EQ(reply.as<VfioUserVersion>().major, 0);
        CHECK_EQ(reply.as<VfioUserVersion>().minor, 0);
        CHECK_EQ(reply.body.back(), 0);
        client.leave();
        CHECK_FAILS(rig.server->service(), Code::kPeer, "left");
        return std::string(reply.body.begin() + sizeof(VfioUserVersion), reply.body.end() - 1);
    };
    CHECK_EQ(offered("", false), std::string(R"({"capabilities":{}})"));
    CHECK_EQ(offered(R"({"capabilities":{"max_msg_fds":8,"twin_socket":{}}})", true), std::string(R"({"capabilities":{"max_msg_fds":16}})"));
    CHECK_EQ(offered(R"({"capabilities": {"migration": {"pgsize": 4096}, "max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096,
                         "max_dma_maps": 65535, "write_multiple": true}})", true),
             std::string(R"({"capabilities":{"max_msg_fds":16,"max_data_xfer_size":4096,"max_dma_maps":512,"pgsizes":4096,"write_multiple":true}})"));
}

TEST(the_device_and_its_regions_are_described) {
    Connected rig;
    const auto info = rig.ask(rig.client, VfioUserCommand::kDeviceGetInfo, bytes_of(VfioUserDeviceInfo{16, 0, 0, 0})).as<VfioUserDeviceInfo>();
    CHECK_EQ(info.flags, static_cast<uint32_t>(VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET));
    CHECK_EQ(info.regions, 9u);
    CHECK_EQ(info.irqs, 3u);
    const uint64_t sizes[9] = {2 * kPage, 0, kBar2Bytes, 0, 4 * kPage, 0, 0, 4096, 0};
    for (uint32_t index = 0; index < 9; ++index) {
        Reply reply = rig.ask(rig.client, VfioUserCommand::kDeviceGetRegionInfo, bytes_of(VfioUserRegionInfo{32, 0, index, 0, 0, 0}));
        const auto region = reply.as<VfioUserRegionInfo>();
        CHECK_EQ(region.index, index);
        CHECK_EQ(region.size, sizes[index]);
        CHECK_EQ(region.argsz, 32u);
        CHECK_EQ(region.flags, sizes[index] == 0 ? 0u : index == 2 ? 7u : 3u);
        CHECK_EQ(reply.fd.is_open(), index == 2);
        if (index == 2) {
            const GuestView theirs(reply.fd.get(), kBar2Bytes), ours(rig.function.bar2.get(), kBar2Bytes);
            theirs[100] = 55;
            CHECK_EQ(ours[100], 55);
        }
    }
    for (uint32_t index = 0; index < 3; ++index) {
        const auto irq = rig.ask(rig.client, VfioUserCommand::kDeviceGetIrqInfo, bytes_of(VfioUserIrqInfo{16, 0, index, 0})).as<VfioUserIrqInfo>();
        CHECK_EQ(irq.count, index == kMsix ? kVectors : 0u);
        CHECK_EQ(irq.flags, index == kMsix ? static_cast<uint32_t>(VFIO_IRQ_INFO_EVENTFD) : 0u);
    }
}

TEST(register_accesses_reach_the_function) {
    Connected rig;
    for (uint32_t count : {1u, 2u, 4u, 8u}) {
        CHECK_EQ(rig.read(rig.client, 0, 2 * kPage - 8, count), (0x8877665544332211 + 2 * kPage - 8) & (~uint64_t{0} >> (64 - 8 * count)));
        CHECK_EQ(rig.write(rig.client, 4, 0x40, 0x1122334455667788, count), 0u);
        CHECK(rig.function.writes.back() == (Access{4, 0x40, 0x1122334455667788 & (~uint64_t{0} >> (64 - 8 * count)), count}));
        CHECK(rig.function.reads.back() == (Access{0, 2 * kPage - 8, 0, count}));
    }
    CHECK_EQ(rig.write(rig.client, 2, 8, 9, 8), 0u);  // memory that is mapped may be reached by message too
    CHECK(rig.function.writes.back() == (Access{2, 8, 9, 8}));
}

TEST(the_msix_table_never_reaches_the_function) {
    Connected rig;
    CHECK_EQ(rig.write(rig.client, 0, kTable, 0xfee00000, 4), 0u);
    CHECK_EQ(rig.write(rig.client, 0, kTable + 16 * kVectors - 4, 1, 4), 0u);
    CHECK_EQ(rig.write(rig.client, 0, kPba, 1, 8), 0u);
    CHECK_EQ(rig.read(rig.client, 0, kTable, 4), 0u);
    CHECK_EQ(rig.read(rig.client, 0, kPba, 8), 0u);
    CHECK(rig.function.writes.empty() && rig.function.reads.empty());
    CHECK_EQ(rig.write(rig.client, 0, kTable - 4, 1, 4), 0u);
    CHECK_EQ(rig.write(rig.client, 0, kTable + 16 * kVectors, 2, 4), 0u);
    CHECK_EQ(rig.write(rig.client, 0, kPba - 8, 3, 8), 0u);
    CHECK_EQ(rig.write(rig.client, 0, kPba + 8, 4, 8), 0u);
    CHECK_EQ(rig.function.writes.size(), 4u);
}

TEST(the_configuration_space_is_read_whole_and_written_masked) {
    Connected rig;
    const Reply reply = rig.ask(rig.client, VfioUserCommand::kRegionRead, bytes_of(VfioUserRegionAccess{0, kConfig, 4096}));
    CHECK_EQ(reply.body.size(), sizeof(VfioUserRegionAccess) + 4096);
    CHECK_EQ(reply.body[16], 0x0f);
    CHECK_EQ(reply.body[17], 0x1d);
    CHECK_EQ(rig.write(rig.client, kConfig, PCI_BASE_ADDRESS_0, 0xffffffff, 4), 0u);
    CHECK_EQ(rig.read(rig.client, kConfig, PCI_BASE_ADDRESS_0, 4), 0xffffe000u);
    CHECK_EQ(rig.write(rig.client, kConfig, PCI_VENDOR_ID, 0, 4), 0u);
    CHECK_EQ(rig.read(rig.client, kConfig, PCI_VENDOR_ID, 4), 0xefa21d0fu);
    CHECK(rig.function.writes.empty());
}

TEST(many_writes_come_in_one_message) {
    Connected rig;
    std::vector<uint8_t> body = bytes_of(uint64_t{200});
    for (uint64_t i = 0; i < 200; ++i) {
        VfioUserMultiWrite one{{i * 4, 4, 4}, {}};
        std::memcpy(one.data, &i, sizeof i);
        body = body + bytes_of(one);
    }
    const Reply reply = rig.ask(rig.client, VfioUserCommand::kRegionWriteMulti, body);
    CHECK(!reply.is_error());
    CHECK_EQ(reply.as<uint64_t>(), 200u);
    CHECK_EQ(rig.function.writes.size(), 200u);
    CHECK(rig.function.writes[199] == (Access{4, 796, 199, 4}));
}

TEST(a_command_without_reply_gets_none) {
    Connected rig;
    const std::vector<uint8_t> body = bytes_of(VfioUserRegionAccess{0, 4, 4}) + bytes_of(uint32_t{7});
    rig.client.send(VfioUserCommand::kRegionWrite, body, {}, kVfioUserNoReply);
    rig.client.send(VfioUserCommand::kRegionWrite, bytes_of(uint32_t{1}), {}, kVfioUserNoReply);  // nor an error reply
    CHECK_OK(rig.server->service());
    CHECK(!rig.client.has_reply());
    CHECK_EQ(rig.function.writes.size(), 1u);
    rig.expect_alive(rig.client);
}

TEST(guest_memory_comes_and_goes) {
    Connected rig;
    const Fd ram = make_ram(8 * kPage);
    const GuestView view(ram.get(), 8 * kPage);
    const size_t fds = open_fds();
    CHECK_EQ(rig.map(rig.client, 0, 4 * kPage, {ram.get()}), 0u);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, kPage, {ram.get()}, 7 * kPage, VFIO_DMA_MAP_FLAG_READ), 0u);
    CHECK_EQ(rig.map(rig.client, 0xf0000, kPage, {}), 0u);  // a ROM
    view[7 * kPage] = 9;
    uint8_t byte = 0;
    CHECK(rig.memory.read(4 * kPage, &byte, 1));
    CHECK_EQ(byte, 9);
    CHECK(!rig.memory.write(4 * kPage, &byte, 1));
    CHECK(!rig.memory.read(0xf0000, &byte, 1));
    const Reply reply = rig.ask(rig.client, VfioUserCommand::kDmaUnmap, bytes_of(VfioUserDmaUnmap{24, 0, 0, 4 * kPage}));
    CHECK_EQ(reply.as<VfioUserDmaUnmap>().size, 4 * kPage);
    CHECK(!rig.memory.read(0, &byte, 1));
    CHECK_EQ(open_fds(), fds + 1);
    CHECK_EQ(rig.unmap(rig.client, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL), 0u);
    CHECK(!rig.memory.read(4 * kPage, &byte, 1));
    CHECK_EQ(open_fds(), fds);
}

TEST(vectors_are_raised_through_their_eventfds) {
    Connected rig;
    Eventfd events[3];
    rig.server->raise(0);
    CHECK_EQ(rig.set_irqs(rig.client, {20, kEventfd | kTrigger, kMsix, 0, 1}), 0u);  // "MSI-X on, no vector yet"
    CHECK_EQ(rig.set_irqs(rig.client, {20, kEventfd | kTrigger, kMsix, 14, 3}, {events[0].fd.get(), events[1].fd.get(), events[2].fd.get()}), 0u);
    rig.server->raise(15);
    CHECK_EQ(events[1].take(), 0u);  // the guest has not enabled MSI-X
    rig.enable_msix();
    for (uint32_t vector : {0u, 15u, 15u, 16u, 17u, 64u, UINT32_MAX}) rig.server->raise(vector);
    CHECK_EQ(events[0].take(), 0u);
    CHECK_EQ(events[1].take(), 2u);
    CHECK_EQ(events[2].take(), 1u);
    CHECK_EQ(rig.set_irqs(rig.client, {20, kEventfd | kTrigger, kMsix, 15, 1}), 0u);  // one taken away
    rig.server->raise(15);
    rig.server->raise(16);
    CHECK_EQ(events[1].take(), 0u);
    CHECK_EQ(events[2].take(), 1u);
    CHECK_EQ(rig.set_irqs(rig.client, {20, kNone | kTrigger, kMsix, 0, 0}), 0u);  // all
    rig.server->raise(16);
    CHECK_EQ(events[2].take(), 0u);
}

TEST(a_masked_vector_waits_and_shows_as_pending) {
    Connected rig;
    const Eventfd event;
    rig.enable_msix();
    CHECK_EQ(rig.set_irqs(rig.client, {20, kEventfd | kTrigger, kMsix, 9, 1}, {event.fd.get()}), 0u);
    CHECK_EQ(rig.set_irqs(rig.client, {20, kNone | VFIO_IRQ_SET_ACTION_MASK, kMsix, 8, 2}), 0u);
    rig.server->raise(9);
    CHECK_EQ(event.take(), 0u);
    CHECK_EQ(rig.read(rig.client, 0, kPba, 8), 1u << 9);
    CHECK_EQ(rig.read(rig.client, 0, kPba + 1, 1), 2u);
    CHECK_EQ(rig.set_irqs(rig.client, {22, VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_ACTION_UNMASK, kMsix, 8, 2}, {}, {1, 0}), 0u);
    CHECK_EQ(event.take(), 0u);
    CHECK_EQ(rig.set_irqs(rig.client, {22, VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_ACTION_UNMASK, kMsix, 8, 2}, {}, {0, 1}), 0u);
    CHECK_EQ(event.take(), 1u);
    CHECK_EQ(rig.read(rig.client, 0, kPba, 8), 0u);
    CHECK_EQ(rig.set_irqs(rig.client, {20, kNone | kTrigger, kMsix, 9, 1}), 0u);  // a client may trigger it for a test
    CHECK_EQ(event.take(), 1u);
}

TEST(resets_reach_the_function_and_the_configuration_space) {
    Connected rig;
    const int before = rig.function.resets;
    CHECK_EQ(rig.write(rig.client, kConfig, PCI_COMMAND, PCI_COMMAND_MASTER, 2), 0u);
    CHECK_EQ(rig.error_of(rig.client, VfioUserCommand::kDeviceReset), 0u);
    CHECK_EQ(rig.function.resets, before + 1);
    CHECK_EQ(rig.read(rig.client, kConfig, PCI_COMMAND, 2), 0u);
    CHECK_EQ(rig.write(rig.client, kConfig, 0x60 + PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR, 2), 0u);
    CHECK_EQ(rig.function.resets, before + 2);
}

TEST(a_client_that_leaves_takes_everything_along_and_the_next_is_served) {
    Rig rig;
    const size_t fds = open_fds();
    for (int round = 0; round < 3; ++round) {
        Client client(rig.path);
        CHECK(!rig.server->has_client());
        rig.handshake(client);
        CHECK(rig.server->has_client());
        CHECK_EQ(rig.read(client, kConfig, kMsixFlags, 2), kVectors - 1u);  // as after a reset
        const Fd ram = make_ram(kPage);
        const Eventfd event;
        CHECK_EQ(rig.map(client, 0, kPage, {ram.get()}), 0u);
        CHECK_EQ(rig.set_irqs(client, {20, kEventfd | kTrigger, kMsix, 0, 1}, {event.fd.get()}), 0u);
        CHECK_EQ(rig.write(client, kConfig, kMsixFlags, PCI_MSIX_FLAGS_ENABLE, 2), 0u);
        rig.server->raise(0);
        CHECK_EQ(event.take(), 1u);
        client.leave();
        CHECK_FAILS(rig.server->service(), Code::kPeer, "left");
        CHECK(!rig.server->has_client());
        CHECK_EQ(rig.function.resets, round + 1);
        CHECK(!rig.memory.overlaps(0, kPage));
        rig.server->raise(0);
        CHECK_EQ(event.take(), 0u);
    }
    CHECK_EQ(open_fds(), fds);
}

TEST(a_second_client_waits_until_the_first_has_left) {
    Rig rig;
    Client first(rig.path);
    rig.handshake(first);
    Client second(rig.path);
    second.send(VfioUserCommand::kVersion, bytes_of(VfioUserVersion{0, 0}));
    rig.expect_alive(first);
    CHECK(!second.has_reply());
    first.leave();
    CHECK_FAILS(rig.server->service(), Code::kPeer, "left");
    CHECK_OK(rig.server->service());
    CHECK(!second.receive().is_error());
}

TEST(messages_may_come_in_parts_and_in_heaps) {
    Connected rig;
    const Fd ram = make_ram(2 * kPage);
    const auto info = Client::message(4, bytes_of(VfioUserDeviceInfo{16, 0, 0, 0}));
    for (size_t i = 0; i < info.size(); ++i) {
        CHECK(!rig.client.has_reply());
        CHECK(rig.client.send_raw(&info[i], 1));
        CHECK_OK(rig.server->service());
    }
    CHECK(!rig.client.receive().is_error());
    // Descriptors belong to the message that they came with, also between others, and when its bytes come in two parts.
    const auto map = Client::message(2, bytes_of(VfioUserDmaMap{32, 3, 0, 0, kPage}));
    const auto second = Client::message(2, bytes_of(VfioUserDmaMap{32, 3, kPage, kPage, kPage}));
    CHECK(rig.client.send_raw(info.data(), info.size()));
    CHECK(rig.client.send_raw(map.data(), map.size(), {ram.get()}));
    CHECK(rig.client.send_raw(info.data(), info.size()));
    CHECK(rig.client.send_raw(second.data(), 20, {ram.get()}));
    CHECK_OK(rig.server->service());
    CHECK(rig.client.send_raw(second.data() + 20, second.size() - 20));
    CHECK_OK(rig.server->service());
    for (int i = 0; i < 4; ++i) CHECK(!rig.client.receive().is_error());
    uint8_t byte;
    CHECK(rig.memory.read(0, &byte, 1) && rig.memory.read(kPage, &byte, 1));
}

TEST(the_socket_is_this_users_and_goes_with_the_server) {
    Folder folder;
    FakeFunction function;
    GuestMemory memory;
    std::unique_ptr<VfioUserServer> server, other;
    const std::string path = folder.path + "/socket";
    const auto create = [&](const std::string& at, std::unique_ptr<VfioUserServer>* to) { return VfioUserServer::create(at, &function, &memory, to); };
    const mode_t mask = umask(0);
    CHECK_OK(create(path, &server));
    umask(mask);
    struct stat file {};
    CHECK_EQ(lstat(path.c_str(), &file), 0);
    CHECK_EQ(file.st_mode & 0777, 0600u);
    CHECK_FAILS(create(path, &other), Code::kConfig, "another process listens");
    { Client probe(path); }
    server.reset();
    CHECK(lstat(path.c_str(), &file) != 0);

    const auto leave_socket_behind = [&] {
        const Fd stale(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, path.c_str(), path.size());
        CHECK_EQ(bind(stale.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    };
    leave_socket_behind();
    CHECK_OK(create(path, &server));
    // Somebody put another socket there: it is not ours to remove.
    CHECK_EQ(unlink(path.c_str()), 0);
    leave_socket_behind();
    server.reset();
    CHECK_EQ(lstat(path.c_str(), &file), 0);
    CHECK_EQ(unlink(path.c_str()), 0);

    close(open(path.c_str(), O_CREAT | O_CLOEXEC, 0600));
    CHECK_FAILS(create(path, &server), Code::kConfig, "something else is there");
    CHECK_FAILS(create(folder.path + "/none/socket", &server), Code::kConfig, "choose a folder");
    CHECK_FAILS(create(folder.path + std::string(120, 'x'), &server), Code::kConfig, "shorter");
    CHECK_FAILS(create("", &server), Code::kConfig, "shorter");
    function.shape.bars[0].bytes = 1;
    CHECK_FAILS(create(folder.path + "/good", &server), Code::kInvalidArgument, "BAR 0");
}

TEST_MAIN()
