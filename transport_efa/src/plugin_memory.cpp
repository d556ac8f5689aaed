// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "log.h"
#include "plugin.h"

namespace nvshmem_efa::plugin {

namespace {

// What lies in the host's 512 opaque bytes. The host copies and exchanges them, so nothing in it is a pointer of ours.
struct Envelope {
    uint64_t magic = 0;
    uint32_t version = 0;
    uint32_t bytes = 0;     // sizeof(MemHandle) of the writer
    uint64_t checksum = 0;  // of `handle`
    MemHandle handle;
};
static_assert(sizeof(Envelope) <= abi::kMemHandleBytes);

constexpr uint64_t kEnvelopeMagic = 0x656c646e61686665ull;
constexpr uint32_t kEnvelopeVersion = 1;

uint64_t checksum(const MemHandle& handle) {  // FNV-1a: against truncation and mix-ups, not against an attacker
    unsigned char raw[sizeof handle];
    std::memcpy(raw, &handle, sizeof raw);
    uint64_t sum = 0xcbf29ce484222325ull;
    for (const unsigned char byte : raw) sum = (sum ^ byte) * 0x100000001b3ull;
    return sum;
}

Status check_envelope(const Envelope& envelope) {
    if (envelope.magic != kEnvelopeMagic) {
        return Status::error(Code::kProtocol, "run every PE with NVSHMEM_REMOTE_TRANSPORT=efa",
                             "a memory handle that this plugin did not make");
    }
    if (envelope.version != kEnvelopeVersion || envelope.bytes != sizeof(MemHandle)) {
        return Status::error(Code::kMismatch, "install one version of nvshmem-efa on every machine",
                             "a memory handle of layout version %u with %u bytes; this version makes %u with %zu",
                             envelope.version, envelope.bytes, kEnvelopeVersion, sizeof(MemHandle));
    }
    return Status();
}

bool is_zero(const abi::MemHandleBytes& bytes) {
    for (const unsigned char byte : bytes.bytes) {
        if (byte) return false;
    }
    return true;
}

}  // namespace

Status open_handle(const abi::MemHandleBytes* bytes, const MemHandle** handle) {
    *handle = nullptr;
    if (!bytes) return Status();
    const Envelope* envelope = reinterpret_cast<const Envelope*>(bytes);
    if (envelope->magic != kEnvelopeMagic || envelope->version != kEnvelopeVersion) return check_envelope(*envelope);
    *handle = &envelope->handle;
    return Status();
}

Status get_handle(PluginState& state, abi::MemHandleBytes* out, void* buffer, size_t bytes, bool is_local_only) {
    if (!out || !buffer || bytes == 0) {
        return Status::error(Code::kInvalidArgument, kReportHint, "registering %zu bytes at %p", bytes, buffer);
    }
    Envelope envelope;
    EFA_TRY(state.transport->register_memory(buffer, bytes, &envelope.handle));
    envelope.magic = kEnvelopeMagic;
    envelope.version = kEnvelopeVersion;
    envelope.bytes = sizeof(MemHandle);
    envelope.checksum = checksum(envelope.handle);
    std::memset(out, 0, sizeof *out);
    std::memcpy(out, &envelope, sizeof envelope);
    if (!is_local_only && envelope.handle.kind == static_cast<uint8_t>(MemoryKind::kCuda)) {
        const std::lock_guard<std::mutex> lock(state.own_heap_mutex);
        if (state.own_heap.bytes == 0) state.own_heap = envelope.handle;
    }
    return is_local_only ? state.transport->add_local_memory(envelope.handle) : Status();
}

Status release_handle(PluginState& state, abi::MemHandleBytes* bytes) {
    const MemHandle* handle = nullptr;
    EFA_TRY(open_handle(bytes, &handle));
    if (!handle) return Status::error(Code::kInvalidArgument, kReportHint, "releasing a null memory handle");
    {
        const std::lock_guard<std::mutex> lock(state.own_heap_mutex);
        if (state.own_heap.bytes != 0 && state.own_heap.id == handle->id) state.own_heap = MemHandle();
    }
    EFA_TRY(state.transport->release_memory(*handle));
    std::memset(bytes, 0, sizeof *bytes);
    return Status();
}

Status add_peer_handles(PluginState& state, const abi::MemHandleBytes* handles, int stride, int index) {
    if (!handles || stride <= 0 || index < 0 || index >= stride) {
        return Status::error(Code::kInvalidArgument, kReportHint, "peer handles at %p, place %d of %d per PE",
                             static_cast<const void*>(handles), index, stride);
    }
    std::vector<MemHandle> chunk(static_cast<size_t>(state.n_pes));
    for (int pe = 0; pe < state.n_pes; ++pe) {
        const abi::MemHandleBytes& bytes = handles[static_cast<size_t>(pe) * static_cast<size_t>(stride) +
                                                   static_cast<size_t>(index)];
        if (is_zero(bytes)) {
            EFA_LOG(kDebug, "memory", "PE %d has no handle for this chunk", pe);
            continue;
        }
        const Envelope* envelope = reinterpret_cast<const Envelope*>(&bytes);
        EFA_TRY(check_envelope(*envelope).with_context("from PE " + std::to_string(pe)));
        if (envelope->checksum != checksum(envelope->handle)) {
            return Status::error(Code::kProtocol, "look for the cause in the bootstrap", "the memory handle of PE %d was damaged on its way", pe);
        }
        EFA_TRY(state.transport->attach_peer_memory(pe, envelope->handle));
        chunk[static_cast<size_t>(pe)] = envelope->handle;
    }
    return state.transport->add_heap_chunk(chunk);
}

}  // namespace nvshmem_efa::plugin
