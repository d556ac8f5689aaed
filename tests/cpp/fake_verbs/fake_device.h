// SPDX-License-Identifier: Apache-2.0
// What stands behind the fake libibverbs and libefa: devices with any mix of answers, a record of every call, objects
// that are counted, and failures on demand. The fakes read and write the callers' structs by offsets taken from
// rdma-core's headers, not by the declarations under test.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#if defined(FAKE_DEVICE_BUILD)
#define FAKE_EXPORT __attribute__((visibility("default")))
#else
#define FAKE_EXPORT
#endif

namespace fake {

struct Call {
    std::string name;
    std::map<std::string, uint64_t> args;
    std::vector<uint8_t> bytes;   // the first struct passed, as it was on entry
    std::vector<uint8_t> bytes2;  // the second
    template <class T>
    T at(size_t offset) const {
        T value;
        std::memcpy(&value, bytes.data() + offset, sizeof(T));
        return value;
    }
    template <class T>
    T at2(size_t offset) const {
        T value;
        std::memcpy(&value, bytes2.data() + offset, sizeof(T));
        return value;
    }
};

struct Failure {
    int error = 5;     // errno; 0 makes a pointer call return null without one
    int after = 0;     // calls that still succeed
    bool once = true;  // later ones succeed again
};

// What devices answer. The defaults are a p5en with everything on.
struct Answers {
    uint32_t efa_caps = 0x7f;
    uint32_t max_sq_wr = 4096, max_rq_wr = 32768;
    uint16_t max_sq_sge = 2, inline_small = 32, inline_large = 80;
    uint32_t max_rdma = 1u << 30;
    int max_qp = 1024, max_qp_wr = 4096, max_cqe = 65535, max_mr = 262144;
    uint32_t port_state = 4, max_msg_sz = 8928;
    bool has_gid = true;
    uint16_t wq_caps = 1;  // 64-bit request ids
    uint32_t max_batch = 16;
    uint32_t cq_entry_bytes = 32, sq_entry_bytes = 0;  // 0: 64 or 128, as asked
    uint32_t llq_slots = 4096;
    int data_in_order = 2;
    uint32_t max_counters = 512, counter_ops = 0x3f;
    bool refuse_dmabuf = false;
};

struct State {
    std::vector<std::string> devices;  // as ibv_get_device_list() gives them
    Answers answers;
    std::map<std::string, Failure> failures;
    std::vector<Call> calls;
    std::vector<std::string> violations;  // use of dead objects, destruction out of order
    std::map<std::string, int> live;      // objects by kind: context, pd, mr, ah, cq, qp, counter, device_list
};

FAKE_EXPORT State& state();
FAKE_EXPORT void reset();      // forgets calls, failures and answers; live objects stay counted
FAKE_EXPORT void forget_objects();  // for tests in which a destroy is refused for good

// ---- for the fake libraries ----

struct Object {
    alignas(8) uint8_t head[64] = {};  // what the ABI shows of it
    std::string kind;
    Object* uses[8] = {};
    int users = 0;
    std::vector<uint8_t> ring, ring2;
    uint32_t doorbell = 0, doorbell2 = 0;
    uint32_t entry_bytes = 0, entries = 0, entries2 = 0, qp_state = 0;
    uint8_t gid[16] = {};
};

// Records the call; an errno value when it shall fail, -1 when it shall fail without one, 0 to go on.
FAKE_EXPORT int enter(const char* name, std::map<std::string, uint64_t> args = {}, const void* bytes = nullptr,
                      size_t n_bytes = 0, const void* bytes2 = nullptr, size_t n_bytes2 = 0);
FAKE_EXPORT Object* make(const char* kind, std::vector<Object*> uses);
FAKE_EXPORT int destroy(const char* kind, void* object);  // errno; EBUSY while others use it
FAKE_EXPORT bool is_live(const char* kind, void* object);  // a violation when it is not

template <class T>
T read(const void* base, size_t offset) {
    T value;
    std::memcpy(&value, static_cast<const uint8_t*>(base) + offset, sizeof(T));
    return value;
}

template <class T>
void write(void* base, size_t offset, T value) {
    std::memcpy(static_cast<uint8_t*>(base) + offset, &value, sizeof(T));
}

}  // namespace fake
