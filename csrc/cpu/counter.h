// Work that several threads take off one counter.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Calls work(k) for the numbers that are left, until none is; other threads do so beside it.
inline void take_all(std::atomic<int64_t>& next, int64_t count,
                     const std::function<void(int64_t)>& work) {
  for (;;) {
    const int64_t k = next.fetch_add(1, std::memory_order_relaxed);
    if (k >= count) return;
    work(k);
  }
}

}  // namespace detr_fast::cpu
