// SPDX-License-Identifier: Apache-2.0
// Memory regions of a guest: page lists in their three forms, and everything that is no such list.
#include "efa_function_rig.h"

using namespace pci_test;

namespace {

using S = AdminStatus;
constexpr uint64_t kAddr = 0x7f0000000000;  // where the guest's program sees its memory

// Pages of RAM in an order of their own: neighbours are not neighbours.
std::vector<uint64_t> scattered(Rig& rig, uint64_t n) {
    std::vector<uint64_t> pages;
    for (uint64_t i = 0; i < n; ++i) pages.push_back(rig.alloc(kPage));
    for (uint64_t i = 0; i + 1 < n; i += 2) std::swap(pages[i], pages[i + 1]);
    return pages;
}

uint64_t write_list(Rig& rig, const std::vector<uint64_t>& addresses) {
    const uint64_t list = rig.alloc(addresses.size() * 8);
    std::memcpy(rig.at(list), addresses.data(), addresses.size() * 8);
    return list;
}

// Chunks of up to 510 pointers to lists of 512 pages each; returns the first chunk.
GuestBuffer write_chunks(Rig& rig, const std::vector<uint64_t>& pages) {
    std::vector<uint64_t> lists;
    for (size_t i = 0; i < pages.size(); i += 512) {
        const uint64_t* first = pages.data() + i;
        lists.push_back(write_list(rig, {first, first + std::min<size_t>(512, pages.size() - i)}));
    }
    GuestBuffer next{};
    for (size_t n_chunks = (lists.size() + 509) / 510; n_chunks-- > 0;) {
        const size_t first = n_chunks * 510, n = std::min<size_t>(510, lists.size() - first);
        const uint64_t chunk = rig.alloc(kPage);
        std::memcpy(rig.at(chunk), &lists[first], n * 8);
        if (n == 510) std::memcpy(rig.at(chunk) + 4080, &next, sizeof next);
        next = {static_cast<uint32_t>(n * 8 + 12), low(chunk), high(chunk)};
    }
    return next;
}

// Writes a pattern through the region, by a loopback RDMA write, and checks where its bytes are.
void check_placed(Rig& rig, const MrView& mr, const std::vector<uint64_t>& pages, uint64_t offset, uint32_t bytes) {
    CqView cq = rig.make_cq();
    QpView qp = rig.make_qp(rig.qp_command(cq, cq));
    rig.make_ready(qp);
    const uint16_t ah = rig.make_ah();
    const uint64_t source = rig.alloc(bytes);
    for (uint32_t i = 0; i < bytes; ++i) *rig.at(source + i) = static_cast<uint8_t>(i * 7 + 1);
    RegMrCommand command = rig.mr_command(source, bytes, source);
    const MrView from = rig.make_mr(command);
    CHECK_EQ(from.status, 0);
    SendWqe wqe = rig.wqe(qp, SendOpcode::kRdmaWrite, qp, ah, 1);
    wqe_set_remote(wqe, mr.addr + offset, bytes, mr.rkey);
    wqe_set_local(wqe, source, bytes, from.lkey);
    rig.post(qp, wqe);
    rig.run();
    CHECK_EQ(Rig::next_status(cq.rings[0]), 0);
    for (uint32_t i = 0; i < bytes; ++i) {
        const uint64_t at = mr.addr % kPage + offset + i;
        CHECK_EQ(*rig.at(pages[at / kPage] + at % kPage), static_cast<uint8_t>(i * 7 + 1));
    }
}

}  // namespace

TEST(up_to_four_pages_come_inside_the_command) {
    Rig rig;
    const auto pages = scattered(rig, 4);
    RegMrCommand command = rig.mr_command(0, 3 * kPage + 100, kAddr + 3000);
    for (int i = 0; i < 4; ++i) command.inline_pages[i] = pages[static_cast<size_t>(i)];
    const MrView mr = rig.make_mr(command);
    CHECK_EQ(mr.status, 0);
    check_placed(rig, mr, pages, 1000, 5000);
}

TEST(more_pages_come_as_an_array) {
    Rig rig;
    const auto pages = scattered(rig, 700);  // the array itself is longer than a page
    RegMrCommand command = rig.mr_command(0, 700 * kPage, kAddr);
    const uint64_t list = write_list(rig, pages);
    command.list = {700 * 8, low(list), high(list)};
    const MrView mr = rig.make_mr(command, kAdminHasControlData);
    CHECK_EQ(mr.status, 0);
    check_placed(rig, mr, pages, 600 * kPage - 50, 3 * kPage);
}

TEST(many_pages_come_as_chunks_of_pointers_to_lists) {
    Rig rig;
    const auto few = scattered(rig, 100);
    std::vector<uint64_t> pages(1300, few[0]);  // three lists
    for (size_t i = 0; i < 100; ++i) pages[1200 + i] = few[i];
    RegMrCommand command = rig.mr_command(0, pages.size() * kPage, kAddr);
    command.list = write_chunks(rig, pages);
    const MrView mr = rig.make_mr(command, kAdminHasControlData | kAdminIsIndirect);
    CHECK_EQ(mr.status, 0);
    check_placed(rig, mr, pages, 1203 * kPage + 7, 3 * kPage);
}

TEST(chunks_are_chained) {
    Rig rig;
    // 511 lists: one more than a chunk holds. All lists are the same page of RAM, which names pages in a row.
    std::vector<uint64_t> row;
    const uint64_t data = rig.alloc(512 * kPage);
    for (uint64_t i = 0; i < 512; ++i) row.push_back(data + i * kPage);
    const uint64_t list = write_list(rig, row);
    const uint64_t first = rig.alloc(kPage), second = rig.alloc(kPage);
    for (uint64_t i = 0; i < 510; ++i) std::memcpy(rig.at(first) + i * 8, &list, 8);
    std::memcpy(rig.at(second), &list, 8);
    const GuestBuffer next{8 + 12, low(second), high(second)};
    std::memcpy(rig.at(first) + 4080, &next, sizeof next);
    RegMrCommand command = rig.mr_command(0, 511ull * 512 * kPage, kAddr);
    command.list = {4092, low(first), high(first)};
    const MrView mr = rig.make_mr(command, kAdminHasControlData | kAdminIsIndirect);
    CHECK_EQ(mr.status, 0);
    std::vector<uint64_t> pages;
    for (int i = 0; i < 511; ++i) pages.insert(pages.end(), row.begin(), row.end());
    check_placed(rig, mr, pages, (510ull * 512 + 17) * kPage + 1, 2 * kPage);
    // Without its second chunk the list ends early.
    const GuestBuffer nowhere{8 + 12, 0, 0x7fff};
    std::memcpy(rig.at(first) + 4080, &nowhere, sizeof nowhere);
    CHECK_EQ(rig.make_mr(command, kAdminHasControlData | kAdminIsIndirect).status,
             static_cast<uint8_t>(S::kMalformedRequest));
}

TEST(of_a_large_page_only_what_the_region_covers_need_be_ram) {
    Rig rig;
    RegMrCommand command = rig.mr_command(0, 2 * kPage, kAddr);
    command.flags = 21;  // the 2-MiB page at 0 has RAM from 1 MiB on
    command.addr = kAddr + kRamBase + 8 * kPage;
    command.inline_pages[0] = 0;
    const MrView mr = rig.make_mr(command);
    CHECK_EQ(mr.status, 0);
    check_placed(rig, mr, {kRamBase + 8 * kPage, kRamBase + 9 * kPage}, 10, 5000);
    command.addr = kAddr + kRamBase - kPage;
    CHECK_EQ(rig.make_mr(command).status, static_cast<uint8_t>(S::kIllegalParameter));
}

TEST(a_region_that_is_asked_for_wrongly_is_refused) {
    Rig rig;
    const uint64_t page = rig.alloc(8 * kPage);
    const RegMrCommand good = rig.mr_command(page, 4 * kPage, kAddr);
    struct Bad {
        S expected;
        uint8_t flags;
        void (*apply)(RegMrCommand&);
    };
    constexpr uint8_t kList = kAdminHasControlData, kChunks = kAdminHasControlData | kAdminIsIndirect;
    const Bad all[] = {
        {S::kIllegalParameter, 0, [](auto& c) { c.pd = 9; }},
        {S::kMalformedRequest, 0, [](auto& c) { c.reserved = 1; }},
        {S::kMalformedRequest, 0, [](auto& c) { c.reserved2 = 1; }},
        {S::kMalformedRequest, 0, [](auto& c) { c.permissions |= 8; }},
        {S::kMalformedRequest, 0, [](auto& c) { c.flags |= 0x40; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.flags |= kMrIsPhysical; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.flags = 11; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.flags = 32; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.flags = 63; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.bytes = 0; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.bytes = UINT64_MAX; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.addr = UINT64_MAX - 100; }},
        {S::kMalformedRequest, 0, [](auto& c) { c.bytes = 4 * kPage + 1; }},  // a fifth page
        {S::kMalformedRequest, 0, [](auto& c) { c.addr += 1; }},
        {S::kNoResources, 0, [](auto& c) { c.bytes = 1ull << 50; }},
        {S::kNoResources, 0, [](auto& c) { c.flags = 31, c.bytes = 1ull << 40; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.inline_pages[2] += 8; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.inline_pages[3] = 0; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.inline_pages[0] = kRamBase + kRamBytes; }},
        {S::kIllegalParameter, 0, [](auto& c) { c.inline_pages[0] = UINT64_MAX - 4095; }},
        {S::kMalformedRequest, kList, [](auto& c) { c.list = {31, low(kRamBase), 0}; }},
        {S::kMalformedRequest, kList, [](auto& c) { c.list = {32, low(kRamBase) + 4, 0}; }},
        {S::kMalformedRequest, kList, [](auto& c) { c.list = {32, 0, 0x7fff}; }},
        {S::kMalformedRequest, kList, [](auto& c) { c.list = {32, low(kRamBase + kRamBytes - 24), 0}; }},
        {S::kMalformedRequest, kList, [](auto& c) { c.list = {32, 0xfffffff8, 0xffffffff}; }},
        {S::kMalformedRequest, kChunks, [](auto& c) { c.list = {7, low(kRamBase), 0}; }},
        {S::kMalformedRequest, kChunks, [](auto& c) { c.list = {4097, low(kRamBase), 0}; }},
        {S::kMalformedRequest, kChunks, [](auto& c) { c.list = {20, 0, 0x7fff}; }},
    };
    for (const Bad& bad : all) {
        RegMrCommand command = good;
        bad.apply(command);
        const auto status = static_cast<S>(rig.make_mr(command, bad.flags).status);
        if (status != bad.expected)
            check::fail(__FILE__, __LINE__, "case " + check::show(&bad - all) + " gave status " + check::show(status));
    }
    CHECK_EQ(rig.make_mr(good).status, 0);
    CHECK_EQ(rig.submit(AdminOpcode::kDeallocPd, IdBody{rig.pd, 0}), S::kResourceBusy);
}

TEST(a_chunk_may_point_to_whole_pages_of_ram_only) {
    Rig rig;
    const auto pages = scattered(rig, 6);
    RegMrCommand command = rig.mr_command(0, 6 * kPage, kAddr);
    command.list = write_chunks(rig, pages);
    uint8_t* chunk = rig.at(command.list.addr());
    uint64_t list;
    std::memcpy(&list, chunk, 8);
    for (uint64_t bad : {list + 8, uint64_t{0}, kRamBase + kRamBytes, UINT64_MAX}) {
        std::memcpy(chunk, &bad, 8);
        CHECK_EQ(rig.make_mr(command, kAdminHasControlData | kAdminIsIndirect).status,
                 static_cast<uint8_t>(S::kMalformedRequest));
    }
    std::memcpy(chunk, &list, 8);
    CHECK_EQ(rig.make_mr(command, kAdminHasControlData | kAdminIsIndirect).status, 0);
}

TEST(a_key_ends_with_its_region) {
    Rig rig;
    const MrView mr = rig.make_mr(rig.mr_command(rig.alloc(kPage), kPage, kAddr));
    CHECK_EQ(mr.rkey & kLkeyMask, mr.lkey);
    CHECK_EQ(rig.submit(AdminOpcode::kDeregMr, DeregMrCommand{mr.lkey + 1}), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kDeregMr, DeregMrCommand{mr.lkey}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDeregMr, DeregMrCommand{mr.lkey}), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kDeallocPd, IdBody{rig.pd, 0}), S::kSuccess);
}

TEST(permissions_are_kept) {
    Rig rig;
    const uint64_t page = rig.alloc(kPage);
    CqView cq = rig.make_cq();
    QpView qp = rig.make_qp(rig.qp_command(cq, cq));
    rig.make_ready(qp);
    const uint16_t ah = rig.make_ah();
    const MrView all = rig.make_mr(rig.mr_command(page, kPage, kAddr));
    for (const bool is_read : {false, true}) {
        for (uint8_t permissions = 0; permissions < 8; ++permissions) {
            RegMrCommand command = rig.mr_command(page, kPage, kAddr);
            command.permissions = permissions;
            const MrView remote = rig.make_mr(command);
            SendWqe wqe = rig.wqe(qp, is_read ? SendOpcode::kRdmaRead : SendOpcode::kRdmaWrite, qp, ah, 1);
            wqe_set_remote(wqe, kAddr + 2048, 64, remote.rkey);
            wqe_set_local(wqe, kAddr, 64, all.lkey);
            rig.post(qp, wqe);
            rig.run();
            const bool is_allowed = permissions & (is_read ? kMrRemoteRead : kMrRemoteWrite);
            CHECK_EQ(Rig::next_status(cq.rings[0]),
                     static_cast<int>(is_allowed ? CqeStatus::kOk : CqeStatus::kRemoteBadAddress));
        }
    }
}

TEST_MAIN()
