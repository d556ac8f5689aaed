// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <thread>

#include "check.h"
#include "fake_cuda/fake_cuda.h"
#include "soft_efa/memory_cuda.h"
#include "soft_efa/memory_cuda_share.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

namespace {

constexpr uint64_t kPiece = 2u << 20;

std::unique_ptr<MemoryPort> make(uint64_t seed, const CudaPortOptions& options = {}, uint64_t process = 77) {
    fake_cuda_reset(seed);
    fake_cuda_use_device(0);
    std::unique_ptr<MemoryPort> port;
    CHECK_OK(make_cuda_memory_port(process, options, &port));
    return port;
}

MemoryAddr host(const void* addr) { return {MemoryKind::kHost, reinterpret_cast<uint64_t>(addr)}; }
MemoryAddr gpu(uint64_t addr) { return {MemoryKind::kCuda, addr}; }
MemoryAttr attr_of(uint64_t addr, size_t bytes, MemoryKind kind = MemoryKind::kCuda) {
    return {reinterpret_cast<void*>(addr), bytes, kind, kAccessLocalWrite | kAccessRemoteWrite};
}

void finish(MemoryPort& port, MemoryPort::Ticket ticket) {
    port.flush();
    for (int turn = 0; !port.done(ticket); ++turn) {
        if (turn > 100000) check::fail(__FILE__, __LINE__, "a copy did not end");
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}

int no_fd(uint64_t, uint32_t) { return -1; }

}  // namespace

TEST(copies_of_every_direction_and_size_arrive_whole) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
        auto port = make(seed);
        constexpr size_t kRoom = 300000;
        std::mt19937_64 random(seed);
        const uint64_t device = fake_cuda_alloc(kRoom), other = fake_cuda_alloc(kRoom);
        MemoryShare share;
        CHECK_OK(port->add_local(attr_of(device, kRoom), &share));
        auto* pinned = static_cast<uint8_t*>(port->alloc_host(kRoom));
        std::vector<uint8_t> plain(kRoom), oracle(kRoom);
        for (auto& byte : oracle) byte = static_cast<uint8_t>(random());
        fake_cuda_forbid_allocation(1);
        for (int turn = 0; turn < 20; ++turn) {
            const size_t bytes = turn % 2 ? 1 + random() % 64 : 1 + random() % kRoom;
            const size_t at = random() % (kRoom - bytes + 1);
            port->copy(gpu(device + at), host(&oracle[at]), bytes);
            port->copy(gpu(other + at), gpu(device + at), bytes);
            port->copy(host(pinned + at), gpu(other + at), bytes);
            const auto last = port->copy(host(&plain[at]), gpu(device + at), bytes);
            CHECK(!port->done(last));  // not before the flush
            finish(*port, last);
            CHECK(std::memcmp(pinned + at, &oracle[at], bytes) == 0);
            CHECK(std::memcmp(&plain[at], &oracle[at], bytes) == 0);
        }
        CHECK_OK(port->error());
        CHECK_EQ(fake_cuda_violations(), uint64_t{0});
        fake_cuda_forbid_allocation(0);
        port->free_host(pinned);
        port.reset();
        fake_cuda_free(device), fake_cuda_free(other);
    }
}

TEST(host_to_host_copies_are_done_at_once_and_empty_ones_too) {
    auto port = make(1);
    char from[100] = "as it was", to[100] = {};
    CHECK_EQ(port->copy(host(to), host(from), sizeof from), uint64_t{0});
    CHECK(std::memcmp(to, from, sizeof from) == 0);
    CHECK_EQ(port->copy(gpu(1), host(from), 0), uint64_t{0});
    CHECK(port->done(0));
    CHECK_EQ(fake_cuda_calls("cuMemcpyAsync"), uint64_t{0});
}

TEST(one_flush_enqueues_one_marker_however_many_copies) {
    auto port = make(1);
    const uint64_t device = fake_cuda_alloc(65536);
    char from[8] = {};
    port->flush();
    CHECK_EQ(fake_cuda_calls("cuStreamWriteValue64"), uint64_t{0});
    MemoryPort::Ticket last = 0;
    for (uint64_t i = 0; i < 50; ++i) last = port->copy(gpu(device + 8 * i), host(from), 8);
    port->flush();
    port->flush();
    CHECK_EQ(fake_cuda_calls("cuStreamWriteValue64"), uint64_t{1});
    const auto next = port->copy(gpu(device), host(from), 8);
    CHECK(next > last);
    finish(*port, next);
    CHECK(port->done(last));
    port.reset();
    fake_cuda_free(device);
}

TEST(copies_within_one_gpu_go_through_host_memory_up_to_the_bound) {
    CudaPortOptions options;
    options.same_gpu_bounce_bytes = 200000;
    auto port = make(3, options);
    const uint64_t device = fake_cuda_alloc(1 << 20), other = fake_cuda_alloc(1 << 20);
    fake_cuda_use_device(1);
    const uint64_t far = fake_cuda_alloc(1 << 20);
    fake_cuda_use_device(0);
    MemoryShare share;
    for (uint64_t addr : {device, other, far}) CHECK_OK(port->add_local(attr_of(addr, 1 << 20), &share));
    auto* bytes = static_cast<uint8_t*>(fake_cuda_cpu(device));
    for (size_t i = 0; i < (1 << 20); ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 251);
    finish(*port, port->copy(gpu(other), gpu(device), 200000));  // in pieces of the staging buffer
    CHECK_EQ(fake_cuda_same_device_copies(), uint64_t{0});
    CHECK(std::memcmp(fake_cuda_cpu(other), bytes, 200000) == 0);
    finish(*port, port->copy(gpu(other), gpu(device), 200001));
    CHECK_EQ(fake_cuda_same_device_copies(), uint64_t{1});
    const uint64_t direct = fake_cuda_calls("cuMemcpyAsync");
    finish(*port, port->copy(gpu(far), gpu(device), 64));  // another GPU: never a kernel of ours
    CHECK_EQ(fake_cuda_calls("cuMemcpyAsync"), direct + 1);
    CHECK_EQ(fake_cuda_same_device_copies(), uint64_t{1});
    port.reset();
    for (uint64_t addr : {device, other, far}) fake_cuda_free(addr);
}

TEST(a_failed_copy_is_reported_once_and_by_name) {
    auto port = make(1);
    const uint64_t device = fake_cuda_alloc(4096);
    char from[64] = {};
    fake_cuda_fail("cuMemcpyAsync", 700, 0, 2);
    port->copy(gpu(device), host(from), 64);
    const auto second = port->copy(gpu(device), host(from), 32);
    finish(*port, second);
    CHECK_FAILS(port->error(), Code::kDevice, "copying 64 bytes from host");
    CHECK_OK(port->error());
    finish(*port, port->copy(gpu(device), host(from), 64));
    CHECK_OK(port->error());
    port.reset();
    fake_cuda_free(device);
}

TEST(a_marker_that_cannot_be_written_lets_nobody_wait_forever) {
    auto port = make(1);
    const uint64_t device = fake_cuda_alloc(4096);
    static char from[64] = {};  // the copy is still under way when the test ends
    fake_cuda_fail("cuStreamWriteValue64", 999, 0, 1);
    const auto ticket = port->copy(gpu(device), host(from), 64);
    port->flush();
    CHECK(port->done(ticket));
    CHECK_FAILS(port->error(), Code::kDevice, "completion marker");
}

TEST(buffers_come_from_pinned_memory_and_then_from_plain_memory) {
    CudaPortOptions options;
    options.arena_bytes = 1 << 20;
    auto port = make(1, options);
    fake_cuda_forbid_allocation(1);
    std::vector<void*> buffers;
    for (int i = 0; i < 40; ++i) {
        buffers.push_back(port->alloc_host(65536));
        CHECK(buffers.back() != nullptr);
        CHECK_EQ(reinterpret_cast<uint64_t>(buffers.back()) % 4096, uint64_t{0});
        std::memset(buffers.back(), i, 65536);
    }
    for (int i = 0; i < 40; ++i) CHECK_EQ(static_cast<char*>(buffers[static_cast<size_t>(i)])[65535], static_cast<char>(i));
    CHECK_EQ(fake_cuda_violations(), uint64_t{0});
    fake_cuda_forbid_allocation(0);
    std::mt19937 random(1);
    std::shuffle(buffers.begin(), buffers.end(), random);
    for (void* buffer : buffers) port->free_host(buffer);
    void* whole = port->alloc_host(1 << 20);  // all pieces have grown together again
    const uint64_t allocated = fake_cuda_calls("cuMemHostAlloc");
    MemoryShare share;
    char plain[64];
    CHECK_OK(port->add_local(attr_of(reinterpret_cast<uint64_t>(plain), 64, MemoryKind::kHost), &share));
    CHECK_EQ(fake_cuda_calls("cuMemHostAlloc"), allocated + 1);  // an application's thread makes the arena grow
    port->free_host(whole);
}

TEST(registered_host_memory_is_pinned_and_let_go_and_a_refusal_is_no_error) {
    auto port = make(1);
    std::vector<char> memory(100000);
    const MemoryAttr attr = attr_of(reinterpret_cast<uint64_t>(memory.data()), memory.size(), MemoryKind::kHost);
    MemoryShare share;
    const int before = fake_cuda_open_mappings();
    CHECK_OK(port->add_local(attr, &share));
    CHECK_EQ(fake_cuda_open_mappings(), before + 1);
    CHECK_OK(port->add_local(attr, &share));  // the second rail
    port->remove_local(attr);
    CHECK_EQ(fake_cuda_open_mappings(), before + 1);
    port->remove_local(attr);
    CHECK_EQ(fake_cuda_open_mappings(), before);
    fake_cuda_fail("cuMemHostRegister", 2, 0, 1);
    CHECK_OK(port->add_local(attr, &share));
    for (uint8_t byte : share.bytes) CHECK_EQ(byte, 0);
    PeerBytes reference;
    CHECK(!port->reference_of(host(memory.data()), 8, &reference));
}

TEST(a_reference_covers_registered_memory_and_not_a_byte_more) {
    auto port = make(1);
    const uint64_t device = fake_cuda_alloc(1 << 20);
    MemoryShare share, inner;
    CHECK_OK(port->add_local(attr_of(device + 4096, 65536), &share));
    PeerBytes reference;
    CHECK(port->reference_of(gpu(device + 4096), 65536, &reference));
    CHECK_EQ(reference.process, uint64_t{77});
    CHECK(port->reference_of(gpu(device + 5000), 100, &reference));
    CHECK_EQ(reference.offset, uint64_t{904});
    CHECK(!port->reference_of(gpu(device + 4095), 2, &reference));
    CHECK(!port->reference_of(gpu(device + 4096), 65537, &reference));
    CHECK(!port->reference_of(gpu(device + 4096 + 65536), 1, &reference));
    // A smaller registration inside must not hide the larger one.
    CHECK_OK(port->add_local(attr_of(device + 8192, 16), &inner));
    CHECK(port->reference_of(gpu(device + 8192), 4096, &reference));
    CHECK_EQ(reference.offset, uint64_t{4096});

    MemoryAddr mapped;
    CHECK(port->resolve(reference, 4096, &mapped));  // the process's own export, without any mapping
    CHECK_EQ(mapped.addr, device + 8192);
    CHECK(mapped.kind == MemoryKind::kCuda);
    CHECK(!port->resolve(reference, 65536, &mapped));
    reference.offset = ~uint64_t{0} - 10;
    CHECK(!port->resolve(reference, 64, &mapped));
    reference = {78, reference.export_id, 0};
    CHECK(!port->resolve(reference, 8, &mapped));
    port->remove_local(attr_of(device + 4096, 65536));
    CHECK(!port->reference_of(gpu(device + 4096), 8, &reference));
    port.reset();
    fake_cuda_free(device);
}

TEST(virtual_memory_is_exported_piece_by_piece_and_its_fds_closed) {
    for (const bool is_old : {false, true}) {
        auto port = make(1);
        fake_cuda_old_driver(is_old);
        const uint64_t device = fake_cuda_alloc_vmm(kPiece, 3, 1);
        MemoryShare bytes;
        const MemoryAttr attr = attr_of(device + 4096, 2 * kPiece);
        CHECK_OK(port->add_local(attr, &bytes));
        CudaShare share;
        std::memcpy(&share, bytes.bytes, sizeof share);
        CHECK_OK(share_check(share));
        CHECK(share.kind == ShareKind::kFds);
        CHECK_EQ(share.n_pieces, 3);
        CHECK_EQ(share.base_offset, uint64_t{4096});
        CHECK_EQ(share.mapping_bytes, 3 * kPiece);
        const int fd = port->export_fd(share.export_id, 2);
        CHECK(fd >= 0 && fcntl(fd, F_GETFD) >= 0);
        CHECK_EQ(port->export_fd(share.export_id, 3), -1);
        CHECK_EQ(port->export_fd(share.export_id + 1, 0), -1);
        port->remove_local(attr);
        CHECK(fcntl(fd, F_GETFD) < 0);
    }
}

TEST(more_pieces_than_are_listed_must_be_of_one_size) {
    auto port = make(1);
    const uint64_t even = fake_cuda_alloc_vmm(kPiece, 20, 1);
    MemoryShare bytes;
    CHECK_OK(port->add_local(attr_of(even, 20 * kPiece), &bytes));
    CudaShare share;
    std::memcpy(&share, bytes.bytes, sizeof share);
    CHECK(share.kind == ShareKind::kFds);
    CHECK_OK(share_check(share));
    for (uint32_t i = 0; i < 20; ++i) CHECK_EQ(share_piece_bytes(share, i), kPiece);
    const uint64_t many = fake_cuda_alloc_vmm(kPiece, kSharePiecesMax + 1, 1);
    CHECK_OK(port->add_local(attr_of(many, (kSharePiecesMax + 1) * kPiece), &bytes));
    std::memcpy(&share, bytes.bytes, sizeof share);
    CHECK(share.kind == ShareKind::kRefused);
}

TEST(memory_that_cannot_be_exported_bounces_or_is_an_error_as_the_knob_says) {
    for (const char* sharing : {"auto", "direct", "bounce"}) {
        CudaPortOptions options;
        options.sharing = sharing;
        auto port = make(1, options);
        const uint64_t device = fake_cuda_alloc_vmm(kPiece, 1, 0);
        MemoryShare share;
        PeerBytes reference;
        if (std::string(sharing) == "direct") {
            CHECK_FAILS(port->add_local(attr_of(device, kPiece), &share), Code::kUnsupported, "NVSHMEM_EFA_SOFT_CUDA=auto");
            continue;
        }
        CHECK_OK(port->add_local(attr_of(device, kPiece), &share));
        CHECK(!port->reference_of(gpu(device), 8, &reference));
        const uint64_t good = fake_cuda_alloc(4096);
        CHECK_OK(port->add_local(attr_of(good, 4096), &share));
        const bool is_shared = std::string(sharing) == "auto";
        CHECK_EQ(port->reference_of(gpu(good), 8, &reference), is_shared);
        CHECK_EQ(share.bytes[0] != 0, is_shared);
    }
}

TEST(a_garbled_share_is_refused_and_never_mapped) {
    auto port = make(1);
    CudaShare share;
    share.magic = kShareMagic, share.version = 1, share.kind = ShareKind::kFds, share.n_pieces = 2;
    share.process = 5, share.bytes = kPiece, share.mapping_bytes = 2 * kPiece;
    share.piece_bytes[0] = share.piece_bytes[1] = kPiece;
    CHECK_OK(share_check(share));
    auto refused = [&](auto change) {
        CudaShare bad = share;
        change(bad);
        MemoryShare bytes;
        std::memcpy(bytes.bytes, &bad, sizeof bad);
        CHECK_FAILS(port->attach(bytes, &no_fd), Code::kProtocol, "not valid");
    };
    refused([](CudaShare& s) { s.version = 2; });
    refused([](CudaShare& s) { s.magic ^= 1; });
    refused([](CudaShare& s) { s.kind = static_cast<ShareKind>(9); });
    refused([](CudaShare& s) { s.n_pieces = 0; });
    refused([](CudaShare& s) { s.n_pieces = 300; });
    refused([](CudaShare& s) { s.mapping_bytes = ~0ull; });
    refused([](CudaShare& s) { s.bytes = 3 * kPiece; });
    refused([](CudaShare& s) { s.base_offset = 2 * kPiece; });
    refused([](CudaShare& s) { s.base_offset = ~0ull; });
    refused([](CudaShare& s) { s.piece_bytes[1] = 1; });
    refused([](CudaShare& s) { s.piece_bytes[0] = ~0ull, s.piece_bytes[1] = 2 * kPiece + 1; });
    CHECK_EQ(fake_cuda_calls("cuMemAddressReserve"), uint64_t{0});
    MemoryShare nothing;
    CHECK_OK(port->attach(nothing, &no_fd));
}

TEST(an_attach_that_fails_midway_undoes_itself) {
    for (const char* call : {"cuMemAddressReserve", "cuMemImportFromShareableHandle", "cuMemMap", "cuMemSetAccess", "fd"}) {
        for (const char* sharing : {"auto", "direct"}) {
            CudaPortOptions options;
            options.sharing = sharing;
            auto port = make(1, options);
            const int before = fake_cuda_open_mappings();
            CudaShare share;
            share.magic = kShareMagic, share.version = 1, share.kind = ShareKind::kFds, share.n_pieces = 2;
            share.process = 5, share.export_id = 1, share.bytes = share.mapping_bytes = 2 * kPiece;
            share.piece_bytes[0] = share.piece_bytes[1] = kPiece;
            MemoryShare bytes;
            std::memcpy(bytes.bytes, &share, sizeof share);
            auto fetch = [&](uint64_t, uint32_t index) {
                if (std::string(call) == "fd" && index == 1) return -1;
                const int fd = memfd_create("piece", 0);
                CHECK_EQ(ftruncate(fd, kPiece), 0);
                return fd;
            };
            const uint32_t skip = std::string(call) == "cuMemMap" ? 1 : 0;
            fake_cuda_fail(call, 2, skip, 1);
            const int probe = dup(0);
            close(probe);
            if (std::string(sharing) == "direct") {
                CHECK_FAILS(port->attach(bytes, fetch), Code::kUnsupported, "NVSHMEM_EFA_SOFT_CUDA=auto");
            } else {
                CHECK_OK(port->attach(bytes, fetch));
            }
            const int after = dup(0);
            close(after);
            CHECK_EQ(after, probe);  // no descriptor stays open
            CHECK_EQ(fake_cuda_open_mappings(), before);
            MemoryAddr mapped;
            CHECK(!port->resolve({5, 1, 0}, 8, &mapped));
        }
    }
}

TEST_MAIN()
