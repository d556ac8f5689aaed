// SPDX-License-Identifier: Apache-2.0
// Payload into memory: at once, in two parts, or by a copy that ends later.
#include <algorithm>

#include "device.h"

namespace nvshmem_efa::soft {
namespace {

uint32_t blocks_of(uint64_t addr, uint32_t bytes) {
    return static_cast<uint32_t>((addr + bytes - 1) / 8 - addr / 8 + 1);
}

}  // namespace

// Puts the segment's bytes where they belong; goes on in placed() when they are there.
void Device::place(uint32_t index) {
    Arrival& arrival = arrivals_[index];
    const PacketHeader& header = arrival.header;
    MemoryAddr source{MemoryKind::kHost, reinterpret_cast<uint64_t>(arrival.payload)};
    if (arrival.is_repeat || arrival.torn_left != 0) {  // time has passed: is the memory still registered?
        const Region* region = regions_.by_rkey(header.rkey);
        const bool is_there = region && region->covers(header.remote_addr, header.message_bytes);
        if (!is_there || arrival.torn_left != 0) {
            if (is_there) place_blocks(arrival, arrival.torn_left);
            arrival.torn_left = 0;
            placed(index);
            return;
        }
    }
    if (header.flags & kPacketByReference) {
        const PeerBytes reference{header.ref_process, header.ref_export, header.ref_offset};
        if (!memory_->resolve(reference, header.segment_bytes, &source)) {
            ask_for_payload(arrival);
            drop_arrival(index);
            return;
        }
    } else if (arrival.target.kind == MemoryKind::kCuda && header.payload_bytes > kArrivalInline && !arrival.buffer &&
               !keep_payload(arrival)) {
        drop_arrival(index);  // cannot be: room() keeps a buffer for every packet
        return;
    } else {
        source.addr = reinterpret_cast<uint64_t>(arrival.payload);
    }
    if (tear(index)) return;
    const auto copy = [this](MemoryAddr to, MemoryAddr from, uint32_t bytes) {
        const bool is_host = to.kind == MemoryKind::kHost && from.kind == MemoryKind::kHost;
        return is_host ? memory_->copy(to, from, bytes) : start_copy(to, from, bytes);
    };
    const uint32_t first = std::min(header.segment_bytes, arrival.target_bytes);
    arrival.ticket = copy(arrival.target, source, first);
    if (first < header.segment_bytes) {
        source.addr += first;
        const MemoryPort::Ticket ticket = copy(arrival.more, source, header.segment_bytes - first);
        if (ticket != 0) arrival.ticket = ticket;  // tickets end in order
    }
    if (arrival.ticket == 0) {
        placed(index);
    } else {
        list_push(arrivals_, placing_, index);
    }
}

// Now and then, a small payload lands in two parts: the device promises nothing above 8 aligned bytes.
bool Device::tear(uint32_t index) {
    Arrival& arrival = arrivals_[index];
    const uint32_t bytes = arrival.header.segment_bytes;
    if (!options_.faults.tear_small || options_.faults.reorder_ns == 0 || bytes <= 8 || bytes > kArrivalInline ||
        arrival.header.type != PacketType::kWrite || arrival.is_repeat || arrival.header.payload_bytes == 0 ||
        arrival.target.kind != MemoryKind::kHost || (prng_.next() & 3u) != 0)
        return false;
    const uint32_t blocks = blocks_of(arrival.target.addr, bytes);
    if (blocks < 2) return false;
    const uint32_t all = (1u << blocks) - 1;
    uint32_t now = static_cast<uint32_t>(prng_.next()) & all;
    if (caps().data_polling_128) now = (1u << (1 + prng_.below(blocks - 1))) - 1;  // in order
    if (now == 0 || now == all) return false;
    ++stats_.torn;
    place_blocks(arrival, now);
    arrival.torn_left = all & ~now;
    arrive_again(index, options_.faults.reorder_ns);
    return true;
}

void Device::place_blocks(const Arrival& arrival, uint32_t mask) {
    const uint64_t first = arrival.target.addr, end = first + arrival.header.segment_bytes;
    for (uint64_t block = first / 8; mask != 0; ++block, mask >>= 1) {
        if (!(mask & 1u)) continue;
        const uint64_t from = std::max(first, block * 8), to = std::min(end, block * 8 + 8);
        memory_->copy(MemoryAddr{MemoryKind::kHost, from},
                      MemoryAddr{MemoryKind::kHost, reinterpret_cast<uint64_t>(arrival.payload) + (from - first)},
                      to - from);
    }
}

void Device::poll_placements() {
    while (!placing_.empty() && memory_->done(arrivals_[placing_.head].ticket)) {
        placed(list_pop(arrivals_, placing_));
    }
    has_copies_ = true;  // so that end_copies() looks for errors that came late
}

// Every byte of the segment is where it belongs.
void Device::placed(uint32_t index) {
    Arrival& arrival = arrivals_[index];
    const PacketHeader& header = arrival.header;
    stats_.bytes_placed += header.segment_bytes;
    trace(3, header.message, header.segment_offset);
    switch (header.type) {
        case PacketType::kSend:
            deliver_send(arrival, CqeStatus::kOk);
            acknowledge(header, arrival.peer, CqeStatus::kOk);
            break;
        case PacketType::kReadResponse:
            if (Op* op = op_of_message(header.message)) {
                op->read_placed += header.segment_bytes;
                if (op->read_placed >= op->bytes) complete_op(static_cast<uint32_t>(header.message), CqeStatus::kOk);
            }
            break;
        default: write_placed(index); return;
    }
    drop_arrival(index);
}

}  // namespace nvshmem_efa::soft
