// SPDX-License-Identifier: Apache-2.0
#include "fake_device.h"

#include <cerrno>
#include <mutex>
#include <set>
#include <utility>

namespace fake {
namespace {

std::recursive_mutex mutex;
std::set<Object*> objects;

}  // namespace

State& state() {
    static State the_state;
    return the_state;
}

void reset() {
    const std::lock_guard lock(mutex);
    std::map<std::string, int> live = std::move(state().live);
    state() = State();
    state().live = std::move(live);
}

void forget_objects() {
    const std::lock_guard lock(mutex);
    for (Object* object : objects) delete object;
    objects.clear();
    state().live.clear();
}

int enter(const char* name, std::map<std::string, uint64_t> args, const void* bytes, size_t n_bytes, const void* bytes2,
          size_t n_bytes2) {
    const std::lock_guard lock(mutex);
    Call call{name, std::move(args), {}, {}};
    const auto* first = static_cast<const uint8_t*>(bytes);
    const auto* second = static_cast<const uint8_t*>(bytes2);
    if (first) call.bytes.assign(first, first + n_bytes);
    if (second) call.bytes2.assign(second, second + n_bytes2);
    state().calls.push_back(std::move(call));
    const auto found = state().failures.find(name);
    if (found == state().failures.end()) return 0;
    if (found->second.after-- > 0) return 0;
    const int error = found->second.error;
    if (found->second.once) state().failures.erase(found);
    return error ? error : -1;
}

Object* make(const char* kind, std::vector<Object*> uses) {
    const std::lock_guard lock(mutex);
    auto* object = new Object;
    object->kind = kind;
    size_t i = 0;
    for (Object* used : uses) {
        object->uses[i++] = used;
        ++used->users;
    }
    objects.insert(object);
    ++state().live[kind];
    return object;
}

bool is_live(const char* kind, void* object) {
    const std::lock_guard lock(mutex);
    auto* candidate = static_cast<Object*>(object);
    if (objects.count(candidate) && candidate->kind == kind) return true;
    state().violations.push_back(std::string("not a live ") + kind);
    return false;
}

int destroy(const char* kind, void* object) {
    const std::lock_guard lock(mutex);
    if (!is_live(kind, object)) return EINVAL;
    auto* dying = static_cast<Object*>(object);
    if (dying->users != 0) {
        state().violations.push_back(std::string(kind) + " destroyed while in use");
        return EBUSY;
    }
    for (Object* used : dying->uses) {
        if (used) --used->users;
    }
    objects.erase(dying);
    --state().live[kind];
    delete dying;
    return 0;
}

}  // namespace fake
