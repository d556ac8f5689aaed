// SPDX-License-Identifier: Apache-2.0
#include "workers.h"

namespace nvshmem_efa::ep {

Workers::Workers(int n) : n_(n) {
    for (int worker = 1; worker < n; ++worker) threads_.emplace_back([this, worker] { run(worker); });
}

Workers::~Workers() {
    {
        const std::lock_guard guard(lock_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Workers::work(int worker) {
    const int64_t from = items_ * worker / n_, to = items_ * (worker + 1) / n_;
    if (from < to) (*body_)(from, to);
}

void Workers::run(int worker) {
    uint64_t seen = 0;
    std::unique_lock held(lock_);
    while (true) {
        wake_.wait(held, [&] { return stop_ || round_ != seen; });
        if (stop_) return;
        seen = round_;
        held.unlock();
        work(worker);
        held.lock();
        if (--busy_ == 0) idle_.notify_one();
    }
}

void Workers::split(int64_t n, const Body& body) {
    if (threads_.empty() || n < 2) {
        if (n > 0) body(0, n);
        return;
    }
    std::unique_lock held(lock_);
    items_ = n;
    body_ = &body;
    busy_ = n_ - 1;
    ++round_;
    held.unlock();
    wake_.notify_all();
    work(0);
    held.lock();
    idle_.wait(held, [&] { return busy_ == 0; });
}

}  // namespace nvshmem_efa::ep
