// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>

#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace nvshmem_efa::soft {
namespace {

constexpr size_t kStackBytes = 512u << 10;
constexpr size_t kGuardBytes = 4096;

thread_local Fiber* t_current = nullptr;
thread_local Fiber* t_starting = nullptr;

// Stacks are kept for the next fiber: a run of simulated histories makes tens of thousands.
struct StackCache {
    std::vector<void*> free;
    ~StackCache() {
        for (void* stack : free) munmap(stack, kStackBytes);
    }
};
thread_local StackCache t_stacks;

void* take_stack() {
    if (!t_stacks.free.empty()) {
        void* stack = t_stacks.free.back();
        t_stacks.free.pop_back();
        return stack;
    }
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack, kGuardBytes, PROT_NONE);
    return stack;
}

}  // namespace

#if defined(__x86_64__)
// Saves the callee-saved registers and exchanges the stacks: no system call, which swapcontext() makes twice.
extern "C" void nvshmem_efa_fiber_switch(void** save_sp, void* load_sp);
asm(R"(
.text
.hidden nvshmem_efa_fiber_switch
.globl nvshmem_efa_fiber_switch
.type nvshmem_efa_fiber_switch, @function
nvshmem_efa_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size nvshmem_efa_fiber_switch, .-nvshmem_efa_fiber_switch
)");
#endif

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)), stack_(take_stack()) {
#if defined(__x86_64__)
    // As if nvshmem_efa_fiber_switch() had been called from nowhere: six registers, then the return to enter().
    auto** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + kStackBytes);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&Fiber::enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    sp_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::enter, 0);
#endif
}

Fiber::~Fiber() {
    if (!is_done_) {
        is_abandoned_ = true;
        resume();
    }
    t_stacks.free.push_back(stack_);
}

Fiber* Fiber::current() { return t_current; }

void Fiber::resume() {
    if (is_done_) return;
    t_current = this;
    t_starting = this;
    switch_in();
    t_current = nullptr;
}

void Fiber::switch_in() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&outer_fake_stack_, stack_, kStackBytes);
#endif
#if defined(__x86_64__)
    nvshmem_efa_fiber_switch(&outer_sp_, sp_);
#else
    swapcontext(&outer_, &context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(outer_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::switch_out(bool is_last) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(is_last ? nullptr : &fake_stack_, outer_stack_, outer_stack_bytes_);
#else
    (void)is_last;
#endif
#if defined(__x86_64__)
    nvshmem_efa_fiber_switch(&sp_, outer_sp_);
#else
    swapcontext(&context_, &outer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, &outer_stack_, &outer_stack_bytes_);
#endif
}

void Fiber::enter() {
    Fiber* self = t_starting;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self->outer_stack_, &self->outer_stack_bytes_);
#endif
    self->run();
    self->is_done_ = true;
    self->switch_out(true);
    __builtin_unreachable();
}

void Fiber::run() {
    if (is_abandoned_) return;  // never started
    try {
        body_();
    } catch (const FiberAbandoned&) {
        // The frames are unwound; nothing to report.
    } catch (...) {
        failure_ = std::current_exception();
    }
    body_ = nullptr;
}

void Fiber::pause() {
    Fiber* self = t_current;
    if (self->is_abandoned_ && self->has_thrown_) return;
    if (!self->is_abandoned_) self->switch_out(false);
    if (self->is_abandoned_) {
        self->has_thrown_ = true;
        throw FiberAbandoned{};
    }
}

std::exception_ptr Fiber::take_failure() {
    std::exception_ptr failure = failure_;
    failure_ = nullptr;
    return failure;
}

}  // namespace nvshmem_efa::soft
