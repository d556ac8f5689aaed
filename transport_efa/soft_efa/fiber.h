// SPDX-License-Identifier: Apache-2.0
// A function with a stack of its own, resumed and paused within one thread.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <exception>
#include <functional>

namespace nvshmem_efa::soft {

// Thrown out of Fiber::pause() when the fiber is abandoned, so that its frames are unwound.
struct FiberAbandoned {};

class Fiber {
   public:
    explicit Fiber(std::function<void()> body);
    ~Fiber();  // unwinds the body if it has not ended
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    void resume();  // until the body pauses or ends; from outside any fiber
    bool is_done() const { return is_done_; }
    // What the body threw, once; null when it ended well.
    std::exception_ptr take_failure();

    static Fiber* current();  // null outside any fiber
    // Returns at the next resume(). In an abandoned fiber it throws once, and after that returns at once, so that
    // waits in destructors run into their deadlines.
    static void pause();
    bool is_abandoned() const { return is_abandoned_; }

   private:
    static void enter();
    void run();
    void switch_in();
    void switch_out(bool is_last);
    std::function<void()> body_;
    std::exception_ptr failure_;
    bool is_done_ = false;
    bool is_abandoned_ = false;
    bool has_thrown_ = false;
    void* stack_ = nullptr;
    void* sp_ = nullptr;         // x86-64: where the other side stands
    void* outer_sp_ = nullptr;
    ucontext_t context_;
    ucontext_t outer_;
    void* fake_stack_ = nullptr;        // AddressSanitizer's
    void* outer_fake_stack_ = nullptr;
    const void* outer_stack_ = nullptr;
    size_t outer_stack_bytes_ = 0;
};

}  // namespace nvshmem_efa::soft
