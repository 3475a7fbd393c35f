// Several threads that share the problems of one call.
#pragma once

#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Calls work(k) once for each k in 0..count-1, in no particular order, on up to `threads` threads
// of which the caller is one, as many as pay for so much work; returns when all are done. `entries`
// is how many numbers are read or written in all. `work` must not throw.
//
// The other threads are torch's own (openmp.h) where these are awake, or a pool's (pool.h). A call
// while another thread's is in progress on those runs on the caller alone.
void parallel_for(int64_t count, int64_t entries, int threads,
                  const std::function<void(int64_t)>& work);

// Whose threads a call would get now: "OpenMP" or "own".
const char* threads_in_use();

}  // namespace detr_fast::cpu
