// SPDX-License-Identifier: Apache-2.0
// The operations, free of the ABI's function signatures. NVSHMEM calls them from its proxy thread and from user threads.
#include <algorithm>
#include <array>
#include <cstring>

#include "cuda_driver.h"
#include "plugin.h"

namespace nvshmem_efa::plugin {

namespace {

constexpr size_t kStackPuts = 16;  // pieces of one put_signal that need no allocation

// From 3.7 on, opcodes of operations on a chosen queue pair are the plain ones plus 100 on the device's side of the
// proxy, and bit 7 of an atomic's opcode means floating point there. The host translates both before it calls us;
// taking them here too costs a comparison.
constexpr int kQpOpcodeOffset = 100;
constexpr int kAmoFloatBit = 0x80;

int plain_rma_opcode(int desc) {
    return desc > kQpOpcodeOffset && desc <= kQpOpcodeOffset + abi::kOpQuiet ? desc - kQpOpcodeOffset : desc;
}

Status check_pe(const PluginState& state, int pe) {
    if (pe >= 0 && pe < state.n_pes) return Status();
    return Status::error(Code::kInvalidArgument, "PEs count from 0; nothing may be sent before connect_endpoints",
                         "PE %d of %d", pe, state.n_pes);
}

Status total_bytes(const abi::RmaBytesdesc& bytes, size_t* total) {
    if (bytes.elembytes > 0 &&
        !__builtin_mul_overflow(bytes.nelems, static_cast<size_t>(bytes.elembytes), total)) {
        return Status();
    }
    return Status::error(Code::kInvalidArgument, kReportHint, "a transfer of %zu elements of %d bytes", bytes.nelems,
                         bytes.elembytes);
}

// Only host calls of typed elements stride (nvshmem_<type>_iput). The chunks that the host library cuts long transfers
// into, and everything from the proxy, are counted in single bytes, and their stride fields are not known to be set.
bool is_strided(Lane lane, const abi::RmaBytesdesc& bytes) {
    return lane == Lane::kHost && bytes.nelems > 1 && bytes.elembytes > 1 && bytes.src_stride > 0 &&
           bytes.dst_stride > 0 && (bytes.src_stride != 1 || bytes.dst_stride != 1);
}

Status rma_strided(PluginState& state, Lane lane, RmaOp op, const abi::RmaBytesdesc& bytes) {
    const bool is_put = op.kind == RmaKind::kPut;
    const size_t element = static_cast<size_t>(bytes.elembytes);
    const size_t local_step = static_cast<size_t>(is_put ? bytes.src_stride : bytes.dst_stride);
    const size_t remote_step = static_cast<size_t>(is_put ? bytes.dst_stride : bytes.src_stride);
    size_t reach = 0;
    if (__builtin_mul_overflow(bytes.nelems, std::max(local_step, remote_step), &reach) ||
        __builtin_mul_overflow(reach, element, &reach)) {
        return Status::error(Code::kInvalidArgument, kReportHint, "%zu elements of %zu bytes with strides %zu and %zu",
                             bytes.nelems, element, local_step, remote_step);
    }
    op.bytes = element;
    const bool blocking = op.blocking;
    op.blocking = false;  // one wait at the end instead of one per element
    char* const local = static_cast<char*>(op.local);
    const uint64_t remote = op.remote;
    for (size_t i = 0; i < bytes.nelems; ++i) {
        op.local = local + i * local_step * element;
        op.remote = remote + i * remote_step * element;
        EFA_TRY(state.transport->rma(lane, op));
    }
    return blocking ? state.transport->quiet(lane, op.pe) : Status();
}

// The result of a host's g goes to a variable of the caller, who waits for it. No device can write there.
bool is_host_variable(const RmaOp& op) {
    return !op.local_handle && op.bytes <= kScratchBytes && cuda::memory_kind_of(op.local) == MemoryKind::kHost;
}

Status get_to_stack(PluginState& state, Lane lane, RmaOp op) {
    Scratch& scratch = state.scratch;
    const std::lock_guard<std::mutex> lock(scratch.mutex);
    EFA_TRY(prepare_scratch(state));
    void* const destination = op.local;
    op.local = scratch.memory.get();
    op.local_handle = &scratch.handle;
    op.blocking = true;
    EFA_TRY(state.transport->rma(lane, op));
    std::memcpy(destination, scratch.memory.get(), op.bytes);
    return Status();
}

struct AmoMeaning {
    WordOp op;
    bool is_fetching;
};

bool amo_meaning(int desc, AmoMeaning* meaning) {
    switch (desc) {
        case abi::kAmoInc:
        case abi::kAmoAdd:
        case abi::kAmoSignalAdd: *meaning = {WordOp::kAdd, false}; return true;
        case abi::kAmoSet:
        case abi::kAmoSignal:
        case abi::kAmoSignalSet: *meaning = {WordOp::kSet, false}; return true;
        case abi::kAmoAnd: *meaning = {WordOp::kAnd, false}; return true;
        case abi::kAmoOr: *meaning = {WordOp::kOr, false}; return true;
        case abi::kAmoXor: *meaning = {WordOp::kXor, false}; return true;
        case abi::kAmoFetch: *meaning = {WordOp::kFetch, true}; return true;
        case abi::kAmoFetchInc:
        case abi::kAmoFetchAdd: *meaning = {WordOp::kAdd, true}; return true;
        case abi::kAmoFetchAnd: *meaning = {WordOp::kAnd, true}; return true;
        case abi::kAmoFetchOr: *meaning = {WordOp::kOr, true}; return true;
        case abi::kAmoFetchXor: *meaning = {WordOp::kXor, true}; return true;
        case abi::kAmoSwap: *meaning = {WordOp::kSwap, true}; return true;
        case abi::kAmoCompareSwap: *meaning = {WordOp::kCompareSwap, true}; return true;
        default: return false;  // also ACK: a message between two of NVSHMEM's own transports, never a request
    }
}

// The number one, as the bits of the word's type.
uint64_t one(WordType type, int bytes) {
    if (type == WordType::kInteger) return 1;
    return bytes == 2 ? 0x3c00u : bytes == 4 ? 0x3f800000u : 0x3ff0000000000000ull;
}

Status translate_amo(int pe, AmoVerb verb, const abi::AmoMemdesc& target, int elembytes, AmoOp* op) {
    if (verb.desc > kAmoFloatBit && verb.desc < 2 * kAmoFloatBit) {
        verb.desc -= kAmoFloatBit;
        verb.is_float = true;
    }
    AmoMeaning meaning{};
    if (!amo_meaning(verb.desc, &meaning)) {
        return Status::error(Code::kUnsupported, kReportHint, "atomic operation number %d", verb.desc);
    }
    const uint64_t address = reinterpret_cast<uint64_t>(target.remote.ptr);
    if ((elembytes != 2 && elembytes != 4 && elembytes != 8) || address % static_cast<uint64_t>(elembytes) != 0) {
        return Status::error(Code::kInvalidArgument, "words have 2, 4 or 8 bytes and are aligned to their size",
                             "an atomic on %d bytes at 0x%llx of PE %d", elembytes,
                             static_cast<unsigned long long>(address), pe);
    }
    EFA_TRY(open_handle(target.remote.handle, &op->remote_handle));
    op->pe = pe;
    op->op = meaning.op;
    op->type = verb.is_float ? WordType::kFloat : WordType::kInteger;
    op->bytes = static_cast<uint8_t>(elembytes);
    op->remote = address;
    const bool is_increment = verb.desc == abi::kAmoInc || verb.desc == abi::kAmoFetchInc;
    op->operand = is_increment ? one(op->type, elembytes) : target.value;
    op->compare = target.compare;
    op->fetching = meaning.is_fetching;
    if (!meaning.is_fetching) return Status();
    op->result = target.ret_ptr;
    op->result_flag = target.ret_flag;
    if (op->result) return Status();
    return Status::error(Code::kInvalidArgument, kReportHint, "a fetching atomic with nowhere to put its result");
}

Status translate_put(int pe, const abi::RmaMemdesc& remote, const abi::RmaMemdesc& local,
                     const abi::RmaBytesdesc& bytes, RmaOp* op) {
    op->kind = RmaKind::kPut;
    op->pe = pe;
    op->remote = reinterpret_cast<uint64_t>(remote.ptr);
    op->local = local.ptr;
    EFA_TRY(open_handle(remote.handle, &op->remote_handle));
    EFA_TRY(open_handle(local.handle, &op->local_handle));
    return total_bytes(bytes, &op->bytes);
}

// On ABI 3, whatever leaves by the proxy lane leaves behind the put that is held back.
bool holds_puts(const PluginState& state, Lane lane) { return state.abi == 3 && lane == Lane::kProxy; }

bool is_signal(int desc) { return desc == abi::kAmoSignal || desc == abi::kAmoSignalSet || desc == abi::kAmoSignalAdd; }

}  // namespace

Status prepare_scratch(PluginState& state) {
    Scratch& scratch = state.scratch;
    if (scratch.handle.bytes != 0) return Status();
    if (!scratch.memory) scratch.memory = std::make_unique<unsigned char[]>(kScratchBytes);
    return state.transport->register_memory(scratch.memory.get(), kScratchBytes, &scratch.handle);
}

Status rma(PluginState& state, Lane lane, int pe, const abi::RmaVerb& verb, const abi::RmaMemdesc& remote,
           const abi::RmaMemdesc& local, const abi::RmaBytesdesc& bytes) {
    EFA_TRY(check_pe(state, pe));
    RmaOp op;
    EFA_TRY(translate_put(pe, remote, local, bytes, &op));
    const int opcode = plain_rma_opcode(verb.desc);
    switch (opcode) {
        case abi::kOpPut: break;
        case abi::kOpP: op.copy_source = true; break;
        case abi::kOpGet:
        case abi::kOpG: op.kind = RmaKind::kGet; break;
        default: return Status::error(Code::kUnsupported, kReportHint, "remote memory operation number %d", verb.desc);
    }
    op.blocking = !verb.is_nbi && opcode != abi::kOpP;
    if (op.bytes == 0) return Status();
    if (op.kind == RmaKind::kGet && is_host_variable(op)) {
        if (holds_puts(state, lane)) EFA_TRY(state.held.flush(*state.transport));
        return get_to_stack(state, lane, op);
    }
    if (is_strided(lane, bytes)) return rma_strided(state, lane, op, bytes);
    if (!holds_puts(state, lane)) return state.transport->rma(lane, op);
    // Memory without a handle may be gone by the next call.
    if (opcode == abi::kOpPut && !op.blocking && op.local_handle) return state.held.hold(*state.transport, op);
    EFA_TRY(state.held.flush(*state.transport));
    return state.transport->rma(lane, op);
}

Status amo(PluginState& state, Lane lane, int pe, const AmoVerb& verb, const abi::AmoMemdesc& target,
           const abi::AmoBytesdesc& bytes) {
    EFA_TRY(check_pe(state, pe));
    AmoOp op;
    EFA_TRY(translate_amo(pe, verb, target, bytes.elembytes, &op));
    if (!holds_puts(state, lane)) return state.transport->amo(lane, op);
    bool is_done = false;
    EFA_TRY(is_signal(verb.desc) ? state.held.signal(*state.transport, op, &is_done) : state.held.flush(*state.transport));
    return is_done ? Status() : state.transport->amo(lane, op);
}

Status put_signal(PluginState& state, Lane lane, int pe, const std::vector<abi::RmaMemdesc>& remote,
                  const std::vector<abi::RmaMemdesc>& local, const std::vector<abi::RmaBytesdesc>& bytes,
                  const SignalArgs& signal) {
    EFA_TRY(check_pe(state, pe));
    if (remote.size() != local.size() || remote.size() != bytes.size() || !signal.target) {
        return Status::error(Code::kInvalidArgument, kReportHint,
                             "put_signal with %zu targets, %zu sources and %zu lengths", remote.size(), local.size(), bytes.size());
    }
    PutSignalOp op;
    EFA_TRY(translate_amo(pe, signal.verb, *signal.target, signal.bytes.elembytes, &op.signal));
    if (op.signal.fetching || (op.signal.op != WordOp::kSet && op.signal.op != WordOp::kAdd)) {
        return Status::error(Code::kUnsupported, kReportHint, "put_signal with atomic operation number %d",
                             signal.verb.desc);
    }
    std::array<RmaOp, kStackPuts> few;
    std::vector<RmaOp> many;
    if (remote.size() > few.size()) many.resize(remote.size());
    RmaOp* const puts = many.empty() ? few.data() : many.data();
    for (size_t i = 0; i < remote.size(); ++i) {
        RmaOp& put = puts[op.n_puts];
        EFA_TRY(translate_put(pe, remote[i], local[i], bytes[i], &put));
        if (put.bytes != 0) ++op.n_puts;
    }
    op.puts = puts;
    return state.transport->put_signal(lane, op);
}

Status fence(PluginState& state, Lane lane, bool all_lanes, int pe) {
    EFA_TRY(check_pe(state, pe));
    if (holds_puts(state, lane)) return state.held.fence(*state.transport, pe);
    if (!all_lanes) return state.transport->fence(lane, pe);
    EFA_TRY(state.transport->fence(Lane::kHost, pe));
    return state.transport->fence(Lane::kProxy, pe);
}

Status quiet(PluginState& state, Lane lane, bool all_lanes, int pe) {
    EFA_TRY(check_pe(state, pe));
    if (holds_puts(state, lane)) EFA_TRY(state.held.flush(*state.transport));
    if (!all_lanes) return state.transport->quiet(lane, pe);
    EFA_TRY(state.transport->quiet(Lane::kHost, pe));
    return state.transport->quiet(Lane::kProxy, pe);
}

Status progress(PluginState& state) {
    if (state.n_pes == 0) return Status();
    if (holds_puts(state, Lane::kProxy)) EFA_TRY(state.held.flush_if_late(*state.transport));
    return state.transport->progress(Lane::kProxy);
}

Status flush_arrivals(PluginState& state) {
    // The software device reports data only when it is in place. A real one has posted PCIe writes, which a read by the
    // device from the same memory pushes ahead of itself.
    if (state.mode == Mode::kSoft || state.n_pes == 0) return Status();
    MemHandle heap;
    {
        const std::lock_guard<std::mutex> lock(state.own_heap_mutex);
        heap = state.own_heap;
    }
    if (heap.bytes < sizeof(uint64_t)) return Status();
    RmaOp op;
    op.kind = RmaKind::kGet;
    op.pe = state.my_pe;
    op.remote = heap.base;
    op.remote_handle = &heap;
    op.bytes = sizeof(uint64_t);
    Scratch& scratch = state.scratch;
    const std::lock_guard<std::mutex> lock(scratch.mutex);
    EFA_TRY(prepare_scratch(state));
    op.local = scratch.memory.get();
    op.local_handle = &scratch.handle;
    op.blocking = true;
    return state.transport->rma(Lane::kProxy, op);
}

}  // namespace nvshmem_efa::plugin
