// Solves many problems on several threads; the result does not depend on the number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <new>

#include "core/status.h"
#include "cpu/parallel.h"

namespace detr_fast::cpu {

// Calls solve(p), which returns a Fault, for each problem p in 0..count-1. Returns the fault of the
// lowest p, as if the calls had run in order and stopped there. For `entries` and `threads` see
// parallel.h.
template <class Solve>
Fault solve_all(int64_t count, int64_t entries, int threads, Solve solve) {
  std::mutex mutex;
  Fault first;
  std::atomic<int64_t> end{count};  // problems from here on cannot change the result
  parallel_for(count, entries, threads, [&](int64_t p) {
    if (p >= end.load(std::memory_order_relaxed)) return;
    Fault fault;
    try {
      fault = solve(p);
    } catch (const std::bad_alloc&) {
      fault = {Status::kOutOfMemory, p};
    }
    if (fault.status == Status::kOk) return;
    const std::lock_guard<std::mutex> lock(mutex);
    if (p >= end.load(std::memory_order_relaxed)) return;
    end.store(p, std::memory_order_relaxed);
    first = fault;
  });
  return first;
}

}  // namespace detr_fast::cpu
