// Shares the problems of one call among several threads.
#pragma once

#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Calls work(k) once for each k in 0..count-1, in no particular order, on up to `threads` threads
// including the caller, but no more than the work justifies; returns when all are done. `entries`
// is the total number of values read or written. `work` must not throw.
//
// The other threads are torch's (openmp.h) if those are awake, else those of a pool (pool.h). While
// they are busy with another thread's call, a call runs on the caller alone.
void parallel_for(int64_t count, int64_t entries, int threads,
                  const std::function<void(int64_t)>& work);

// Which threads a call would use now: "OpenMP" (torch's) or "own" (the pool's).
const char* threads_in_use();

}  // namespace detr_fast::cpu
