// SPDX-License-Identifier: Apache-2.0
// The vfio-user server with clients that break the rules: an error reply or cut off, never more, and nothing is left.
#include <random>

#include "vfio_user_rig.h"

using namespace pci_test;

namespace {

constexpr uint32_t kTrigger = VFIO_IRQ_SET_ACTION_TRIGGER, kEventfd = VFIO_IRQ_SET_DATA_EVENTFD, kNone = VFIO_IRQ_SET_DATA_NONE;
constexpr uint32_t kMsix = VFIO_PCI_MSIX_IRQ_INDEX, kConfig = VFIO_PCI_CONFIG_REGION_INDEX;

struct Connected : Rig {
    Client client{path};
    Connected() { handshake(client); }
    uint32_t refused(VfioUserCommand command, const std::vector<uint8_t>& body, const std::vector<int>& fds = {}) {
        const uint32_t error = error_of(client, command, body, fds);
        expect_alive(client);
        return error;
    }
};

// The server cuts this client off, says why, and serves the next one.
void expect_cut_off(Rig& rig, Client& client, const char* why) {
    CHECK_FAILS(rig.server->service(), Code::kProtocol, why);
    CHECK(!rig.server->has_client());
    client.expect_closed();
    client.leave();
    Client next(rig.path);
    rig.handshake(next);
    rig.expect_alive(next);
    next.leave();
    CHECK_FAILS(rig.server->service(), Code::kPeer, "left");
}

std::vector<uint8_t> without_last(std::vector<uint8_t> bytes) {
    bytes.pop_back();
    return bytes;
}

}  // namespace

TEST(a_first_message_that_is_no_version_ends_the_connection) {
    Rig rig;
    const Fd ram = make_ram(kPage);
    const auto try_first = [&](VfioUserCommand command, const std::vector<uint8_t>& body, const char* why, const std::vector<int>& fds = {}) {
        Client client(rig.path);
        client.send(command, body, fds);
        expect_cut_off(rig, client, why);
    };
    try_first(VfioUserCommand::kDeviceGetInfo, bytes_of(VfioUserDeviceInfo{16, 0, 0, 0}), "began with command 4");
    try_first(VfioUserCommand::kDmaMap, bytes_of(VfioUserDmaMap{32, 3, 0, 0, kPage}), "began with command 2", {ram.get()});
    try_first(VfioUserCommand::kVersion, {}, "is not one");
    try_first(VfioUserCommand::kVersion, {0, 0, 0}, "is not one");
    try_first(VfioUserCommand::kVersion, bytes_of(VfioUserVersion{0, 0}) + std::vector<uint8_t>{'{', '}'}, "is not one");
    try_first(VfioUserCommand::kVersion, bytes_of(VfioUserVersion{0, 0}), "is not one", {ram.get()});
    try_first(VfioUserCommand::kVersion, bytes_of(VfioUserVersion{1, 0}), "speaks vfio-user 1.0");
    CHECK(!rig.memory.overlaps(0, kPage));
}

TEST(headers_that_cannot_be_end_the_connection) {
    const auto try_header = [](const VfioUserHeader& header, const char* why) {
        Rig rig;
        Client client(rig.path);
        rig.handshake(client);
        CHECK(client.send_raw(&header, sizeof header));
        expect_cut_off(rig, client, why);
    };
    try_header({1, 4, 15, 0, 0}, "a message of 15 bytes");
    try_header({1, 4, 0, 0, 0}, "a message of 0 bytes");
    try_header({1, 10, kVfioUserMessageMax + 1, 0, 0}, "a message of 16385 bytes");
    try_header({1, 10, UINT32_MAX, 0, 0}, "a message of 4294967295 bytes");
    try_header({1, 4, 32, kVfioUserReply, 0}, "of type 1");
    try_header({1, 4, 32, 0xf, 0}, "of type 15");
}

TEST(a_client_that_leaves_in_the_middle_of_a_message_is_named) {
    Rig rig;
    const Fd ram = make_ram(kPage);
    const size_t fds = open_fds();
    const auto map = Client::message(2, bytes_of(VfioUserDmaMap{32, 3, 0, 0, kPage}));
    for (size_t sent : {size_t{1}, size_t{15}, size_t{16}, size_t{17}, map.size() - 1}) {
        Client client(rig.path);
        rig.handshake(client);
        CHECK(client.send_raw(map.data(), sent, {ram.get()}));
        CHECK_OK(rig.server->service());
        client.leave();
        CHECK_FAILS(rig.server->service(), Code::kPeer, "in the middle of a message");
    }
    CHECK_EQ(open_fds(), fds);
    CHECK(!rig.memory.overlaps(0, kPage));
}

TEST(commands_of_the_wrong_size_are_refused) {
    Connected rig;
    const std::pair<VfioUserCommand, std::vector<uint8_t>> commands[] = {
        {VfioUserCommand::kDmaMap, bytes_of(VfioUserDmaMap{32, 3, 0, 0, kPage})},
        {VfioUserCommand::kDmaUnmap, bytes_of(VfioUserDmaUnmap{24, 0, 0, kPage})},
        {VfioUserCommand::kDeviceGetInfo, bytes_of(VfioUserDeviceInfo{16, 0, 0, 0})},
        {VfioUserCommand::kDeviceGetRegionInfo, bytes_of(VfioUserRegionInfo{32, 0, 0, 0, 0, 0})},
        {VfioUserCommand::kDeviceGetIrqInfo, bytes_of(VfioUserIrqInfo{16, 0, 0, 0})},
        {VfioUserCommand::kDeviceSetIrqs, bytes_of(VfioUserIrqSet{20, kNone | kTrigger, kMsix, 0, 0})},
        {VfioUserCommand::kRegionRead, bytes_of(VfioUserRegionAccess{0, 0, 4})},
        {VfioUserCommand::kRegionWrite, bytes_of(VfioUserRegionAccess{0, 0, 4}) + bytes_of(uint32_t{1})},
        {VfioUserCommand::kRegionWriteMulti, bytes_of(uint64_t{1}) + bytes_of(VfioUserMultiWrite{{0, 0, 4}, {}})},
    };
    for (const auto& [command, body] : commands) {
        for (const auto& wrong : {std::vector<uint8_t>(), without_last(body), body + std::vector<uint8_t>{0}, body + body}) {
            CHECK_EQ(rig.refused(command, wrong), static_cast<uint32_t>(EINVAL));
        }
    }
    CHECK_EQ(rig.refused(VfioUserCommand::kDeviceReset, {0}), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kVersion, bytes_of(VfioUserVersion{0, 0})), static_cast<uint32_t>(EINVAL));
    for (uint16_t command : {0, 6, 11, 12, 14, 16, 255, 65535}) {
        CHECK_EQ(rig.refused(static_cast<VfioUserCommand>(command), {}), static_cast<uint32_t>(EOPNOTSUPP));
    }
    CHECK(rig.function.reads.empty() && rig.function.writes.empty());
    CHECK_EQ(rig.function.resets, 0);
}

TEST(replies_that_would_not_fit_are_refused) {
    Connected rig;
    CHECK_EQ(rig.refused(VfioUserCommand::kDeviceGetInfo, bytes_of(VfioUserDeviceInfo{15, 0, 0, 0})), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kDeviceGetRegionInfo, bytes_of(VfioUserRegionInfo{31, 0, 0, 0, 0, 0})), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kDeviceGetIrqInfo, bytes_of(VfioUserIrqInfo{15, 0, 0, 0})), static_cast<uint32_t>(EINVAL));
    for (uint32_t index : {9u, 255u, UINT32_MAX}) {
        CHECK_EQ(rig.refused(VfioUserCommand::kDeviceGetRegionInfo, bytes_of(VfioUserRegionInfo{32, 0, index, 0, 0, 0})), static_cast<uint32_t>(EINVAL));
    }
    for (uint32_t index : {3u, UINT32_MAX}) {
        CHECK_EQ(rig.refused(VfioUserCommand::kDeviceGetIrqInfo, bytes_of(VfioUserIrqInfo{16, 0, index, 0})), static_cast<uint32_t>(EINVAL));
    }
}

TEST(accesses_outside_regions_never_reach_the_function) {
    Connected rig;
    struct {
        uint32_t region;
        uint64_t offset;
        uint32_t count;
    } const bad[] = {
        {0, 2 * kPage, 4},        {0, 2 * kPage - 4, 8}, {0, UINT64_MAX - 3, 4}, {0, UINT64_MAX, 1},          {0, 2, 4},         {0, 4, 8},
        {0, 0, 0},                {0, 0, 3},             {0, 0, 16},             {0, 0, 4096},                {1, 0, 4},         {3, 0, 4},
        {5, 0, 4},                {6, 0, 4},             {8, 0, 4},              {9, 0, 4},                   {UINT32_MAX, 0, 4}, {2, kBar2Bytes, 8},
        {4, uint64_t{1} << 32, 4}, {kConfig, 4096, 1},    {kConfig, 4093, 4},     {kConfig, UINT64_MAX, 2},    {kConfig, 1, 4096},
    };
    for (const auto& one : bad) {
        const VfioUserRegionAccess access{one.offset, one.region, one.count};
        CHECK_EQ(rig.refused(VfioUserCommand::kRegionRead, bytes_of(access)), static_cast<uint32_t>(EINVAL));
        CHECK_EQ(rig.refused(VfioUserCommand::kRegionWrite, bytes_of(access) + std::vector<uint8_t>(one.count)), static_cast<uint32_t>(EINVAL));
        CHECK_EQ(rig.refused(VfioUserCommand::kRegionWriteMulti, bytes_of(uint64_t{1}) + bytes_of(VfioUserMultiWrite{access, {}})),
                 static_cast<uint32_t>(EINVAL));
    }
    CHECK_EQ(rig.refused(VfioUserCommand::kRegionRead, bytes_of(VfioUserRegionAccess{0, kConfig, 4097})), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kRegionRead, bytes_of(VfioUserRegionAccess{0, kConfig, UINT32_MAX})), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kRegionWrite, bytes_of(VfioUserRegionAccess{0, 0, 8}) + bytes_of(1)), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kRegionWriteMulti, bytes_of(UINT64_MAX) + bytes_of(VfioUserMultiWrite{{0, 0, 4}, {}})),
             static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kRegionWriteMulti, bytes_of(uint64_t{1}) + bytes_of(VfioUserMultiWrite{{0, kConfig, 9}, {}})),
             static_cast<uint32_t>(EINVAL));
    CHECK(rig.function.reads.empty() && rig.function.writes.empty());
}

TEST(memory_that_cannot_be_is_refused) {
    Connected rig;
    const Fd ram = make_ram(4 * kPage), unsealed = make_ram(4 * kPage, 0);
    const size_t fds = open_fds();
    const auto einval = static_cast<uint32_t>(EINVAL), eexist = static_cast<uint32_t>(EEXIST);
    CHECK_EQ(rig.map(rig.client, 0, 2 * kPage, {ram.get()}), 0u);
    CHECK_EQ(rig.map(rig.client, kPage, kPage, {ram.get()}), eexist);
    CHECK_EQ(rig.map(rig.client, 0, 2 * kPage, {}), eexist);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, 5 * kPage, {ram.get()}), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, kPage, {ram.get()}, 4 * kPage), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, kPage, {ram.get()}, -kPage), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, UINT64_MAX, {ram.get()}), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, 0, {ram.get()}), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage + 8, kPage, {ram.get()}), einval);
    CHECK_EQ(rig.map(rig.client, -kPage, 2 * kPage, {}), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, kPage, {ram.get(), ram.get()}), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, kPage, {unsealed.get()}), einval);
    CHECK_EQ(rig.map(rig.client, 4 * kPage, kPage, {0}), einval);
    for (uint32_t flags : {0u, 2u, 4u, 7u, UINT32_MAX}) CHECK_EQ(rig.map(rig.client, 4 * kPage, kPage, {ram.get()}, 0, flags), einval);
    CHECK_EQ(rig.refused(VfioUserCommand::kDmaMap, bytes_of(VfioUserDmaMap{31, 3, 0, 4 * kPage, kPage})), einval);
    CHECK_EQ(open_fds(), fds + 1);
    CHECK_EQ(rig.unmap(rig.client, 0, kPage), static_cast<uint32_t>(ENOENT));
    CHECK_EQ(rig.unmap(rig.client, kPage, kPage), static_cast<uint32_t>(ENOENT));
    CHECK_EQ(rig.unmap(rig.client, 0, 2 * kPage, 1), static_cast<uint32_t>(EOPNOTSUPP));
    CHECK_EQ(rig.unmap(rig.client, 0, 2 * kPage, VFIO_DMA_UNMAP_FLAG_ALL), einval);
    CHECK_EQ(rig.unmap(rig.client, 0, 2 * kPage), 0u);
    for (size_t i = 0; i < GuestMemory::kRangesMax; ++i) CHECK_EQ(rig.map(rig.client, i * kPage, kPage, {}), 0u);
    CHECK_EQ(rig.map(rig.client, uint64_t{1} << 40, kPage, {}), static_cast<uint32_t>(ENOMEM));
    rig.expect_alive(rig.client);
}

TEST(descriptors_where_none_belong_are_refused_and_closed) {
    Connected rig;
    const Fd ram = make_ram(kPage);
    const size_t fds = open_fds();
    CHECK_EQ(rig.refused(VfioUserCommand::kDeviceGetInfo, bytes_of(VfioUserDeviceInfo{16, 0, 0, 0}), {ram.get()}), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kRegionWrite, bytes_of(VfioUserRegionAccess{0, 0, 4}) + bytes_of(1), {ram.get(), ram.get()}),
             static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kDeviceReset, {}, {ram.get()}), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(rig.refused(VfioUserCommand::kDmaUnmap, bytes_of(VfioUserDmaUnmap{24, 2, 0, 0}), {ram.get()}), static_cast<uint32_t>(EINVAL));
    CHECK_EQ(open_fds(), fds);
    CHECK(rig.function.writes.empty());
    CHECK_EQ(rig.function.resets, 0);
}

TEST(too_many_descriptors_end_the_connection) {
    Rig rig;
    const Fd ram = make_ram(kPage);
    const size_t fds = open_fds();
    const auto set = Client::message(8, bytes_of(VfioUserIrqSet{20, kEventfd | kTrigger, kMsix, 0, 17}));
    {
        Client client(rig.path);
        rig.handshake(client);
        CHECK(client.send_raw(set.data(), set.size(), std::vector<int>(17, ram.get())));
        expect_cut_off(rig, client, "too many descriptors");
    }
    {
        Client client(rig.path);  // a few with every byte
        rig.handshake(client);
        for (size_t i = 0; i < 9; ++i) CHECK(client.send_raw(&set[i], 1, {ram.get(), ram.get()}));
        expect_cut_off(rig, client, "too many descriptors");
    }
    CHECK_EQ(open_fds(), fds);
}

TEST(interrupts_that_cannot_be_are_refused) {
    Connected rig;
    const Fd event(eventfd(0, EFD_CLOEXEC)), ram = make_ram(kPage);
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    const Fd reader(ends[0]), writer(ends[1]);
    const size_t fds = open_fds();
    const auto refused = [&](VfioUserIrqSet set, const std::vector<int>& with = {}, const std::vector<uint8_t>& data = {}) {
        CHECK_EQ(rig.set_irqs(rig.client, set, with, data), static_cast<uint32_t>(EINVAL));
        rig.expect_alive(rig.client);
    };
    refused({20, kEventfd | kTrigger, kMsix, 17, 1}, {event.get()});
    refused({20, kEventfd | kTrigger, kMsix, 16, 2}, {event.get(), event.get()});
    refused({20, kEventfd | kTrigger, kMsix, UINT32_MAX, 2}, {event.get(), event.get()});
    refused({20, kEventfd | kTrigger, kMsix, 1, UINT32_MAX}, {event.get()});
    refused({20, kEventfd | kTrigger, kMsix, 0, 2}, {event.get()});
    refused({20, kEventfd | kTrigger, kMsix, 0, 1}, {event.get(), event.get()});
    refused({20, kEventfd | kTrigger, kMsix, 0, 1}, {writer.get()});
    refused({20, kEventfd | kTrigger, kMsix, 0, 2}, {event.get(), ram.get()});
    refused({20, kEventfd | kTrigger, 0, 0, 1}, {event.get()});
    refused({20, kEventfd | kTrigger, 3, 0, 1}, {event.get()});
    refused({20, kEventfd | VFIO_IRQ_SET_ACTION_MASK, kMsix, 0, 1}, {event.get()});
    refused({20, kNone | kTrigger, kMsix, 0, 1}, {event.get()});
    refused({20, kNone | kTrigger, kMsix, UINT32_MAX, 2});
    refused({20, kNone | kTrigger, kMsix, 1, UINT32_MAX});
    refused({20, kNone, kMsix, 0, 1});
    refused({20, kTrigger, kMsix, 0, 1});
    refused({20, kNone | kEventfd | kTrigger, kMsix, 0, 1});
    refused({20, kNone | kTrigger | VFIO_IRQ_SET_ACTION_MASK, kMsix, 0, 1});
    refused({20, kNone | kTrigger | 64, kMsix, 0, 1});
    refused({19, kNone | kTrigger, kMsix, 0, 1});
    refused({20, VFIO_IRQ_SET_DATA_BOOL | kTrigger, kMsix, 0, 4}, {}, {1, 1, 1});
    refused({20, VFIO_IRQ_SET_DATA_BOOL | kTrigger, kMsix, 0, UINT32_MAX}, {}, {1});
    refused({20, kNone | kTrigger, kMsix, 0, 1}, {}, {1});
    CHECK_EQ(open_fds(), fds);
}

TEST(an_eventfd_that_is_full_does_not_stop_the_server) {
    Connected rig;
    const Fd event(eventfd(0, EFD_CLOEXEC));  // blocking
    CHECK_EQ(rig.write(rig.client, kConfig, 0x52, 0x8000, 2), 0u);
    CHECK_EQ(rig.set_irqs(rig.client, {20, kEventfd | kTrigger, kMsix, 0, 1}, {event.get()}), 0u);
    CHECK_EQ(fcntl(event.get(), F_SETFL, 0), 0);
    const uint64_t nearly_full = UINT64_MAX - 2;
    CHECK_EQ(write(event.get(), &nearly_full, sizeof nearly_full), 8);
    rig.server->raise(0);  // fills it
    rig.server->raise(0);
    rig.server->raise(0);
    rig.expect_alive(rig.client);
}

TEST(a_client_that_does_not_read_is_cut_off) {
    Rig rig;
    Client client(rig.path);
    rig.handshake(client);
    const auto read = Client::message(9, bytes_of(VfioUserRegionAccess{0, kConfig, 4096}));
    Status status;
    for (int i = 0; i < 10000 && status.ok(); ++i) {
        CHECK(client.send_raw(read.data(), read.size()));
        status = rig.server->service();
    }
    CHECK_EQ(status.code(), Code::kProtocol);
    CHECK(!rig.server->has_client());
}

TEST(one_service_does_not_go_on_for_ever) {
    Connected rig;
    const auto write = Client::message(10, bytes_of(VfioUserRegionAccess{0, 4, 4}) + bytes_of(1), kVfioUserNoReply);
    int sent = 0;
    while (sent < 1000 && rig.client.send_raw(write.data(), write.size())) ++sent;
    CHECK(sent > 100);
    CHECK_OK(rig.server->service());
    CHECK(rig.function.writes.size() < 100);
    for (int i = 0; i < 1000 && rig.function.writes.size() < static_cast<size_t>(sent); ++i) CHECK_OK(rig.server->service());
    CHECK_EQ(rig.function.writes.size(), static_cast<size_t>(sent));
}

namespace {

// Commands as a client might send them, with words replaced at random: most are understood, and wrong in one place.
class RandomMessages {
   public:
    uint64_t below(uint64_t limit) { return random_() % limit; }

    std::vector<uint8_t> next() {
        const uint16_t command = static_cast<uint16_t>(1 + below(15));
        std::vector<uint8_t> body = plausible(static_cast<VfioUserCommand>(command));
        for (size_t at = 0; at + 4 <= body.size(); at += 4) {
            if (below(12) == 0) std::memcpy(&body[at], &kValues[below(std::size(kValues))], 4);
        }
        if (below(40) == 0) body.resize(below(6000));
        std::vector<uint8_t> bytes = Client::message(command, body, below(30) ? 0 : kVfioUserNoReply);
        if (below(400) == 0) bytes[4 + below(8)] ^= static_cast<uint8_t>(1 + below(255));
        if (below(400) == 0) bytes.resize(below(bytes.size()));
        return bytes;
    }
    std::vector<int> descriptors(int ram, int event) {
        const uint64_t kind = below(100);
        if (kind < 40) return {};
        if (kind < 65) return {ram};
        if (kind < 90) return {event};
        return std::vector<int>(below(kind == 99 ? 18 : 4), below(2) ? ram : event);
    }

   private:
    std::vector<uint8_t> plausible(VfioUserCommand command) {
        const uint32_t region = static_cast<uint32_t>(below(9)), count = 1u << below(4);
        const VfioUserRegionAccess access{below(16) * 8, region, count};
        switch (command) {
            case VfioUserCommand::kVersion: return bytes_of(VfioUserVersion{0, 0});
            case VfioUserCommand::kDmaMap: return bytes_of(VfioUserDmaMap{32, 3, below(8) * kPage, below(64) * kPage, (1 + below(4)) * kPage});
            case VfioUserCommand::kDmaUnmap: return bytes_of(VfioUserDmaUnmap{24, 0, below(64) * kPage, (1 + below(4)) * kPage});
            case VfioUserCommand::kDeviceGetInfo: return bytes_of(VfioUserDeviceInfo{16, 0, 0, 0});
            case VfioUserCommand::kDeviceGetRegionInfo: return bytes_of(VfioUserRegionInfo{32, 0, region, 0, 0, 0});
            case VfioUserCommand::kDeviceGetIrqInfo: return bytes_of(VfioUserIrqInfo{16, 0, region, 0});
            case VfioUserCommand::kDeviceSetIrqs:
                return bytes_of(VfioUserIrqSet{20, 1u << below(3) | 8u << below(3), kMsix, static_cast<uint32_t>(below(18)), 1});
            case VfioUserCommand::kRegionRead: return bytes_of(access);
            case VfioUserCommand::kRegionWrite: return bytes_of(access) + std::vector<uint8_t>(count, static_cast<uint8_t>(below(256)));
            case VfioUserCommand::kRegionWriteMulti: return bytes_of(uint64_t{1}) + bytes_of(VfioUserMultiWrite{access, {1, 2, 3, 4}});
            default: return {};
        }
    }
    static constexpr uint32_t kValues[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 255, 4095, 4096, 8192, 0x7fffffff, 0xfffff000, 0xffffffff};
    std::mt19937_64 random_{20261123};
};

}  // namespace

TEST(random_messages_do_no_harm) {
    Rig rig;
    const Fd ram = make_ram(8 * kPage), event(eventfd(0, EFD_CLOEXEC));
    const size_t fds = open_fds();
    RandomMessages random;
    uint64_t replies = 0, errors = 0, cuts = 0;
    for (int round = 0; round < 300; ++round) {
        Client client(rig.path);
        rig.handshake(client);
        for (int i = 0; i < 200; ++i) {
            const std::vector<uint8_t> bytes = random.next();
            if (!client.send_raw(bytes.data(), bytes.size(), random.descriptors(ram.get(), event.get()))) continue;
            const Status status = rig.server->service();
            rig.server->raise(static_cast<uint32_t>(random.below(20)));
            CHECK(status.ok() || status.code() == Code::kProtocol);
            cuts += !status.ok();
            if (!status.ok()) break;
            while (client.has_reply()) {
                const Reply reply = client.receive();
                ++replies;
                errors += reply.is_error();
            }
        }
        client.leave();
        for (int i = 0; i < 10 && rig.server->has_client(); ++i) (void)rig.server->service();
        CHECK(!rig.server->has_client());
    }
    CHECK_EQ(open_fds(), fds);
    CHECK(!rig.memory.overlaps(0, UINT64_MAX));
    std::printf("%llu replies, %llu of them errors, %llu clients cut off\n", static_cast<unsigned long long>(replies),
                static_cast<unsigned long long>(errors), static_cast<unsigned long long>(cuts));
    CHECK(replies - errors > 2000 && errors > 2000 && cuts > 20 && cuts < 299);  // it has met all three
    std::vector<Access> all = rig.function.writes;
    all.insert(all.end(), rig.function.reads.begin(), rig.function.reads.end());
    CHECK(all.size() > 100);
    for (const Access& access : all) {
        const uint64_t bytes = rig.function.shape.bars[access.bar].bytes;
        CHECK(access.offset < bytes && access.bytes <= bytes - access.offset && access.offset % access.bytes == 0);
    }
}

TEST_MAIN()
