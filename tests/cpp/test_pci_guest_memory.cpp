// SPDX-License-Identifier: Apache-2.0
// The guest's RAM: what is reached through it is what the guest has given, whatever addresses come.
#include "soft_efa/pci/guest_memory.h"

#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "guest_ram.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;
using namespace nvshmem_efa::soft::pci;
using namespace pci_test;

namespace {

constexpr uint64_t kRamBytes = 16 * kPage;
constexpr uint64_t kBase = 0x100000;

struct Guest {
    Fd ram = make_ram(kRamBytes);
    GuestView view{ram.get(), kRamBytes};
    GuestMemory memory;

    // Pages [first, first + count) of the file appear at `guest_addr`.
    Status add(uint64_t guest_addr, uint64_t first = 0, uint64_t count = 16, bool is_writable = true) {
        return memory.add_range(guest_addr, count * kPage, dup(ram.get()), first * kPage, is_writable);
    }
};

// Mappings of memfds in this process.
size_t ram_mappings() {
    std::ifstream maps("/proc/self/maps");
    std::string line;
    size_t count = 0;
    while (std::getline(maps, line)) count += line.find("memfd:guest ram") != std::string::npos;
    return count;
}

size_t address_space_pages() {
    std::ifstream statm("/proc/self/statm");
    size_t pages = 0;
    statm >> pages;
    return pages;
}

}  // namespace

TEST(bytes_go_to_the_file_and_come_from_it) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 2, 4));
    CHECK_OK(guest.add(0xffff'0000'0000, 10, 1));
    const char sent[] = "a command of the guest";
    for (uint64_t offset : {0, 1, 2, 3, 4, 4095}) {
        CHECK(guest.memory.write(kBase + offset, sent, sizeof sent));
        CHECK_EQ(std::memcmp(guest.view.at(2 * kPage + offset), sent, sizeof sent), 0);
        char got[sizeof sent] = {};
        CHECK(guest.memory.read(kBase + offset, got, sizeof got));
        CHECK_EQ(std::string(got), std::string(sent));
    }
    CHECK(guest.memory.write(0xffff'0000'0fff, "z", 1));
    CHECK_EQ(guest.view[11 * kPage - 1], 'z');
    CHECK(guest.memory.read(kBase, nullptr, 0));
}

TEST(an_access_with_a_byte_outside_is_refused) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 2));
    CHECK_OK(guest.add(kBase + 3 * kPage, 3, 1));
    uint8_t bytes[64] = {};
    CHECK(guest.memory.read(kBase + 2 * kPage - 64, bytes, 64));
    for (uint64_t addr : {kBase - 1, kBase + 2 * kPage - 63, kBase + 2 * kPage, kBase + 3 * kPage - 64, uint64_t{0}, UINT64_MAX, UINT64_MAX - 63}) {
        CHECK(!guest.memory.read(addr, bytes, 64));
        CHECK(!guest.memory.write(addr, bytes, 64));
    }
    CHECK(!guest.memory.read(kBase, bytes, SIZE_MAX));
    CHECK(!guest.memory.read(kBase + kPage, bytes, SIZE_MAX - kPage));
}

TEST(a_read_only_range_is_not_written_and_not_mapped) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 2, false));
    guest.view[5] = 77;
    uint8_t byte = 0;
    CHECK(guest.memory.read(kBase + 5, &byte, 1));
    CHECK_EQ(byte, 77);
    CHECK(!guest.memory.write(kBase + 5, &byte, 1));
    MappedPages mapped;
    CHECK_FAILS(guest.memory.map_pages({kBase}, 12, &mapped), Code::kInvalidArgument, "not RAM");
}

TEST(ranges_that_cannot_be_are_refused_and_their_descriptors_closed) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 4));
    const size_t fds = open_fds();
    const auto add = [&](uint64_t addr, uint64_t bytes, uint64_t offset) {
        return guest.memory.add_range(addr, bytes, dup(guest.ram.get()), offset, true);
    };
    CHECK_FAILS(add(0, 0, 0), Code::kInvalidArgument, "multiples of 4096");
    CHECK_FAILS(add(1, kPage, 0), Code::kInvalidArgument, "multiples of 4096");
    CHECK_FAILS(add(0, kPage + 1, 0), Code::kInvalidArgument, "multiples of 4096");
    CHECK_FAILS(add(0, kPage, 8), Code::kInvalidArgument, "multiples of 4096");
    CHECK_FAILS(add(-kPage, 2 * kPage, 0), Code::kInvalidArgument, "wraps");
    CHECK_FAILS(add(0, 2 * kPage, -kPage), Code::kInvalidArgument, "wraps");
    CHECK_FAILS(add(0, 17 * kPage, 0), Code::kInvalidArgument, "does not fit its file");
    CHECK_FAILS(add(0, kPage, kRamBytes), Code::kInvalidArgument, "does not fit its file");
    CHECK_FAILS(add(0, uint64_t{1} << 62, 0), Code::kInvalidArgument, "overlaps");
    CHECK_FAILS(add(uint64_t{1} << 32, uint64_t{1} << 62, 0), Code::kResource, "bytes of memory");
    for (uint64_t first : {0, 3, 1}) CHECK_FAILS(add(kBase + first * kPage, kPage, 0), Code::kInvalidArgument, "overlaps");
    CHECK_FAILS(add(kBase - kPage, 2 * kPage, 0), Code::kInvalidArgument, "overlaps");
    CHECK_FAILS(add(kBase - kPage, 8 * kPage, 0), Code::kInvalidArgument, "overlaps");
    CHECK_EQ(open_fds(), fds);
    CHECK_OK(add(kBase - kPage, kPage, 0));
    CHECK_OK(add(kBase + 4 * kPage, kPage, 0));
}

TEST(a_file_that_could_shrink_is_refused) {
    GuestMemory memory;
    Fd unsealed = make_ram(kPage, 0), half = make_ram(kPage, F_SEAL_GROW);
    CHECK_FAILS(memory.add_range(0, kPage, unsealed.release(), 0, true), Code::kInvalidArgument, "no F_SEAL_SHRINK");
    CHECK_FAILS(memory.add_range(0, kPage, half.release(), 0, true), Code::kInvalidArgument, "memory-backend-memfd");
    CHECK_FAILS(memory.add_range(0, kPage, open("/proc/self/exe", O_RDONLY | O_CLOEXEC), 0, false), Code::kInvalidArgument, "knows no seals");
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    CHECK_FAILS(memory.add_range(0, kPage, ends[0], 0, true), Code::kInvalidArgument, "knows no seals");
    close(ends[1]);
    CHECK_FAILS(memory.add_range(0, kPage, 9999, 0, true), Code::kInvalidArgument, "cannot be asked");
}

TEST(a_file_that_may_not_be_written_cannot_be_a_writable_range) {
    GuestMemory memory;
    Fd sealed = make_ram(kPage, F_SEAL_SHRINK | F_SEAL_WRITE);
    CHECK_FAILS(memory.add_range(0, kPage, dup(sealed.get()), 0, true), Code::kInvalidArgument, "cannot map");
    CHECK_OK(memory.add_range(0, kPage, dup(sealed.get()), 0, false));
}

TEST(a_range_without_a_file_is_known_and_out_of_reach) {
    Guest guest;
    CHECK_OK(guest.memory.add_range(kBase, 4 * kPage, -1, 0, false));
    CHECK(guest.memory.overlaps(kBase + 3 * kPage, kPage));
    CHECK_FAILS(guest.add(kBase + 3 * kPage, 0, 1), Code::kInvalidArgument, "overlaps");
    uint8_t byte = 0;
    CHECK(!guest.memory.read(kBase, &byte, 1));
    CHECK(!guest.memory.write(kBase, &byte, 1));
    MappedPages mapped;
    CHECK_FAILS(guest.memory.map_pages({kBase}, 12, &mapped), Code::kInvalidArgument, "not RAM");
    CHECK_OK(guest.memory.remove_range(kBase, 4 * kPage));
    CHECK_OK(guest.add(kBase));
}

TEST(ranges_are_removed_as_they_were_added) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 4));
    CHECK_OK(guest.add(kBase + 4 * kPage, 4, 4));
    const size_t fds = open_fds();
    CHECK_FAILS(guest.memory.remove_range(kBase, 3 * kPage), Code::kInvalidArgument, "as it was mapped");
    CHECK_FAILS(guest.memory.remove_range(kBase + kPage, 3 * kPage), Code::kInvalidArgument, "as it was mapped");
    CHECK_FAILS(guest.memory.remove_range(kBase, 8 * kPage), Code::kInvalidArgument, "as it was mapped");
    CHECK_FAILS(guest.memory.remove_range(0, kPage), Code::kInvalidArgument, "no range");
    CHECK_OK(guest.memory.remove_range(kBase, 4 * kPage));
    CHECK_EQ(open_fds(), fds - 1);
    CHECK(!guest.memory.overlaps(kBase, 4 * kPage));
    CHECK(guest.memory.overlaps(kBase, 4 * kPage + 1));
    CHECK(guest.memory.overlaps(kBase + 8 * kPage - 1, 1));
    CHECK(!guest.memory.overlaps(kBase + 8 * kPage, 1));
    guest.memory.remove_all();
    CHECK_EQ(open_fds(), fds - 2);
    uint8_t byte;
    CHECK(!guest.memory.read(kBase + 4 * kPage, &byte, 1));
}

TEST(more_ranges_than_the_limit_are_refused) {
    Guest guest;
    for (size_t i = 0; i < GuestMemory::kRangesMax; ++i) CHECK_OK(guest.memory.add_range(2 * i * kPage, kPage, -1, 0, true));
    CHECK_FAILS(guest.memory.add_range(uint64_t{1} << 40, kPage, -1, 0, true), Code::kResource, "512");
    CHECK_OK(guest.memory.remove_range(0, kPage));
    CHECK_OK(guest.memory.add_range(uint64_t{1} << 40, kPage, -1, 0, true));
}

TEST(scattered_pages_lie_side_by_side) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 8));
    CHECK_OK(guest.add(kBase + 8 * kPage, 12, 4));  // in a row for the guest, not in the file
    for (uint64_t page = 0; page < 16; ++page) guest.view[page * kPage + 9] = static_cast<uint8_t>(page);
    const std::vector<uint64_t> order = {3, 4, 5, 9, 0, 7, 8, 2, 2};
    std::vector<uint64_t> pages;
    for (uint64_t page : order) pages.push_back(kBase + page * kPage);
    const size_t mappings = ram_mappings();
    MappedPages mapped;
    CHECK_OK(guest.memory.map_pages(pages, 12, &mapped));
    CHECK_EQ(mapped.bytes(), order.size() * kPage);
    for (size_t i = 0; i < order.size(); ++i) {
        const uint64_t in_file = order[i] < 8 ? order[i] : order[i] + 4;
        CHECK_EQ(mapped.data()[i * kPage + 9], in_file);
        mapped.data()[i * kPage + 10] = static_cast<uint8_t>(100 + i);
    }
    CHECK_EQ(guest.view[4 * kPage + 10], 101);
    CHECK_EQ(guest.view[13 * kPage + 10], 103);
    CHECK_EQ(ram_mappings() - mappings, 7u);  // 3-5, 9, 0, 7, 8, 2, 2: neighbours share one
    mapped = MappedPages();
    CHECK_EQ(ram_mappings(), mappings);
}

TEST(large_pages_may_span_ranges) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 2));
    CHECK_OK(guest.add(kBase + 2 * kPage, 9, 6));
    guest.view[9 * kPage] = 42;
    MappedPages mapped;
    CHECK_OK(guest.memory.map_pages({kBase + 4 * kPage, kBase}, 14, &mapped));
    CHECK_EQ(mapped.data()[4 * kPage + 2 * kPage], 42);
    CHECK_FAILS(guest.memory.map_pages({kBase + 4 * kPage, kBase + 8 * kPage}, 14, &mapped), Code::kInvalidArgument, "not RAM");
    CHECK_FAILS(guest.memory.map_pages({kBase + kPage}, 14, &mapped), Code::kInvalidArgument, "not aligned");
    CHECK_EQ(mapped.data()[4 * kPage + 2 * kPage], 42);  // a refusal leaves what was there
}

TEST(page_lists_that_cannot_be_are_refused_and_leave_nothing) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 8));
    CHECK_OK(guest.add(-4 * kPage, 8, 3));
    const size_t mappings = ram_mappings(), pages = address_space_pages();
    MappedPages mapped;
    const auto fails = [&](const std::vector<uint64_t>& list, uint32_t shift, const char* part) {
        CHECK_FAILS(guest.memory.map_pages(list, shift, &mapped), Code::kInvalidArgument, part);
    };
    fails({}, 12, "cannot map 0 pages");
    fails({kBase}, 11, "cannot map 1 pages");
    fails({kBase}, 31, "cannot map 1 pages");
    fails({kBase}, 4000000000u, "cannot map 1 pages");
    fails({kBase, kBase + 512}, 12, "not aligned");
    fails({kBase, kBase + 8 * kPage}, 12, "not RAM");
    fails({kBase, kBase + 2 * kPage, 0}, 12, "not RAM");
    fails({-kPage, 0}, 12, "wraps");
    fails({-2 * kPage, -kPage}, 12, "wraps");
    fails({kBase, uint64_t{1} << 63}, 30, "not aligned");
    fails(std::vector<uint64_t>(1000, uint64_t{1} << 40), 30, "not RAM");
    CHECK(mapped.data() == nullptr);
    CHECK_EQ(ram_mappings(), mappings);
    CHECK_EQ(address_space_pages(), pages);
}

TEST(a_mapping_outlives_its_range) {
    MappedPages mapped;
    {
        Guest guest;
        CHECK_OK(guest.add(kBase));
        CHECK_OK(guest.memory.map_pages({kBase + 3 * kPage}, 12, &mapped));
        guest.memory.remove_all();
        guest.view[3 * kPage] = 5;
        CHECK_EQ(mapped.data()[0], 5);
    }
    mapped.data()[0] = 6;
    MappedPages moved(std::move(mapped));
    CHECK(mapped.data() == nullptr);
    CHECK_EQ(moved.data()[0], 6);
}

TEST(a_contiguous_piece_need_not_be_aligned) {
    Guest guest;
    CHECK_OK(guest.add(kBase, 0, 8));
    guest.view[2 * kPage - 1] = 1;
    guest.view[3 * kPage] = 2;
    MappedPages mapped;
    uint8_t* data = nullptr;
    CHECK_OK(guest.memory.map_contiguous(kBase + 2 * kPage - 1, kPage + 2, &mapped, &data));
    CHECK_EQ(data[0], 1);
    CHECK_EQ(data[kPage + 1], 2);
    CHECK_EQ(mapped.bytes(), 3 * kPage);
    CHECK_OK(guest.memory.map_contiguous(kBase + 8 * kPage - 1, 1, &mapped, &data));
    const auto fails = [&](uint64_t addr, size_t bytes, const char* part) {
        CHECK_FAILS(guest.memory.map_contiguous(addr, bytes, &mapped, &data), Code::kInvalidArgument, part);
    };
    fails(kBase + 8 * kPage - 1, 2, "not RAM");
    fails(kBase, 0, "cannot map");
    fails(kBase, SIZE_MAX, "cannot map");
    fails(kBase, GuestMemory::kAddressesMax + 1, "cannot map");
    fails(kBase, GuestMemory::kAddressesMax, "not RAM");
    fails(UINT64_MAX, 1, "cannot map");
}

TEST(a_guest_cannot_use_up_the_mappings_of_the_process) {
    Guest guest;
    CHECK_OK(guest.add(kBase));
    std::vector<uint64_t> pages;
    for (size_t i = 0; i <= GuestMemory::kPiecesMax; ++i) pages.push_back(kBase + i % 2 * 2 * kPage);
    MappedPages mapped;
    CHECK_FAILS(guest.memory.map_pages(pages, 12, &mapped), Code::kResource, "pieces of memory");
    pages.pop_back();
    CHECK_OK(guest.memory.map_pages(pages, 12, &mapped));  // what failed counts no more
    MappedPages further;
    CHECK_FAILS(guest.memory.map_pages({kBase}, 12, &further), Code::kResource, "pieces of memory");
    mapped = MappedPages();
    CHECK_OK(guest.memory.map_pages({kBase}, 12, &further));
}

TEST(a_guest_cannot_use_up_the_addresses_of_the_process) {
    constexpr uint64_t kHalf = GuestMemory::kAddressesMax / 2, kEighth = kHalf / 4;
    const Fd ram = make_ram(kHalf);  // takes no memory before it is written
    {
        GuestMemory memory;
        CHECK_OK(memory.add_range(0, kHalf, dup(ram.get()), 0, true));
        CHECK_OK(memory.add_range(kHalf, kHalf - kPage, dup(ram.get()), 0, true));
        CHECK_FAILS(memory.add_range(2 * kHalf, 2 * kPage, dup(ram.get()), 0, true), Code::kResource, "bytes of memory");
        CHECK_OK(memory.add_range(2 * kHalf, kPage, dup(ram.get()), 0, true));
        CHECK_OK(memory.add_range(4 * kHalf, kHalf, -1, 0, true));
    }
    GuestMemory memory;
    CHECK_OK(memory.add_range(0, kEighth, dup(ram.get()), 0, true));
    MappedPages mapped[8], further;
    uint8_t* data = nullptr;
    for (MappedPages& one : mapped) CHECK_OK(memory.map_contiguous(0, kEighth, &one, &data));
    CHECK_FAILS(memory.map_contiguous(0, 1, &further, &data), Code::kResource, "mapped");
    mapped[3] = MappedPages();
    CHECK_OK(memory.map_contiguous(0, kEighth, &further, &data));
}

TEST(who_sees_the_first_word_of_an_entry_sees_all_of_it) {
    constexpr uint32_t kEntries = 20000, kWords = 1024;  // long, so that tearing would show
    Guest guest;
    CHECK_OK(guest.add(kBase));
    std::atomic<uint32_t> seen{0};
    std::thread device([&] {
        for (uint32_t entry = 1; entry <= kEntries; ++entry) {
            uint32_t words[kWords];
            std::fill(std::begin(words), std::end(words), entry);
            guest.memory.write(kBase, words, sizeof words);
            while (seen.load() != entry) std::this_thread::yield();
        }
    });
    uint32_t torn = 0, spins = 0;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    bool late = false;
    for (uint32_t entry = 1; entry <= kEntries; ++entry) {
        const uint32_t* first = reinterpret_cast<const uint32_t*>(guest.view.at(0));
        while (!late && __atomic_load_n(first, __ATOMIC_ACQUIRE) != entry) {  // pairs with GuestMemory::write
            if (++spins % 1000 != 0) continue;
            std::this_thread::yield();
            late = std::chrono::steady_clock::now() > deadline;
        }
        for (uint32_t i = kWords - 1; i > 0; --i) torn += !late && first[i] != entry;
        seen.store(entry);
    }
    device.join();
    CHECK(!late);
    CHECK_EQ(torn, 0u);
}

TEST_MAIN()
