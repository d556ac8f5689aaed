// SPDX-License-Identifier: Apache-2.0
// Memory that other processes of this host can map, by a random name that lives no longer than it takes them to.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ep_control.h"
#include "status.h"

namespace nvshmem_efa::ep {

class SharedSlab {
 public:
    SharedSlab() = default;
    ~SharedSlab();  // unmaps, and takes the name away if it is still there
    SharedSlab(SharedSlab&& other) noexcept { *this = static_cast<SharedSlab&&>(other); }
    SharedSlab& operator=(SharedSlab&& other) noexcept;

    // Zeroes, of which only what commit() was called for is sure to have memory behind it. `purpose` is for messages.
    static Status create(size_t bytes, const char* purpose, SharedSlab* slab);
    // A peer's; refused unless it has exactly this size and this user's.
    static Status open(const SlabName& name, size_t bytes, const char* purpose, SharedSlab* slab);
    // Of this process alone: has no name.
    static Status create_private(size_t bytes, const char* purpose, SharedSlab* slab);

    // Memory for the first `bytes`; without it, a write to a file system that is full would end the process. Repeatable.
    Status commit(size_t bytes);
    void unlink();  // once all have mapped it

    uint8_t* base() const { return base_; }
    size_t bytes() const { return bytes_; }
    const SlabName& name() const { return name_; }

 private:
    Status map(int fd, size_t bytes);
    void release();

    uint8_t* base_ = nullptr;
    size_t bytes_ = 0;
    size_t committed_ = 0;
    int fd_ = -1;  // kept by the creator, for commit()
    bool has_name_ = false;
    const char* purpose_ = "";
    SlabName name_ = {};
};

}  // namespace nvshmem_efa::ep
