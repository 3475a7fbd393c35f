// A few threads of our own, for where torch's cannot be had (openmp.h). Not OpenMP's: a second
// runtime in one process oversubscribes it and hangs after a fork.
#pragma once

#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Calls work(k) for each k in 0..count-1 on the caller and up to `helpers` threads of the pool.
// Returns false, having done nothing, if another thread's call is in progress.
//
// The threads are started when first needed, wait for further calls, and are joined at exit. A
// child after fork() has none of its parent's threads; it starts its own.
bool run_on_pool(int64_t count, int helpers, const std::function<void(int64_t)>& work);

// How many threads it has at this moment in this process. For tests.
int pool_size();

}  // namespace detr_fast::cpu
