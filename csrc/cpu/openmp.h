// Runs work on the threads of the OpenMP runtime that torch has loaded into the process, instead of
// loading a second runtime. After one of torch's operations these threads spin for some
// milliseconds, each on a core, before they sleep. While they spin they start new work at once, and
// any other threads would have to wait about 0.1 ms for a core, which is as long as many calls
// take. Once asleep, however, they may take longer to wake than the threads of pool.h, and each
// call waits for all of them.
#pragma once

#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Whether there is such a runtime and its threads are awake, or not observed yet. Always false on
// macOS, and in a process that began as a fork, where a call could wait for threads
// that do not exist. DETR_FAST_THREADS in the environment overrides this: "own" returns false,
// "openmp" returns true if there is a runtime (except in a fork).
bool openmp_is_awake();

// Call only if openmp_is_awake(). Calls work(k) for each k in 0..count-1 on up to `sharing`
// threads, including the caller. Returns false, without doing anything, if another thread's call is
// in progress.
bool run_on_openmp(int64_t count, int sharing, const std::function<void(int64_t)>& work);

}  // namespace detr_fast::cpu
