// Work that several threads take from a shared counter.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Takes numbers k from the counter and calls work(k) until none is left; other threads may do the
// same concurrently.
inline void take_all(std::atomic<int64_t>& next, int64_t count,
                     const std::function<void(int64_t)>& work) {
  for (;;) {
    const int64_t k = next.fetch_add(1, std::memory_order_relaxed);
    if (k >= count) return;
    work(k);
  }
}

}  // namespace detr_fast::cpu
