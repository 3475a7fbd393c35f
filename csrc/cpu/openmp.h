// The threads of the OpenMP runtime that torch has brought into the process: borrowed, and not a
// second runtime. After an operation of torch's they look for more work for some milliseconds
// before they sleep, each on a core. Until then they begin at once, and other threads would have to
// wait for a core, about 0.1 ms, which is as long as many a call takes. Once asleep, though, they
// may take longer to wake than a thread of our own, and each call waits for all of them.
#pragma once

#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Whether there are such threads, awake or not known yet. Not on Windows and macOS, and not in a
// process that began as a fork, where they may not exist and would be waited for. DETR_FAST_THREADS
// in the environment decides otherwise: "own" says no, "openmp" says yes wherever there is a
// runtime.
bool openmp_is_awake();

// If so: calls work(k) for each k in 0..count-1 on up to `sharing` threads of which the caller is
// one. Returns false, having done nothing, if another thread's call is in progress.
bool run_on_openmp(int64_t count, int sharing, const std::function<void(int64_t)>& work);

}  // namespace detr_fast::cpu
