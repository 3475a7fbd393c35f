// A few threads that share the problems of one call. Not OpenMP: torch brings its own, and two
// OpenMP runtimes in one process oversubscribe it and hang after a fork.
#pragma once

#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Calls work(k) once for each k in 0..count-1, in no particular order, on up to `threads` threads
// of which the caller is one; returns when all are done. `work` must not throw.
//
// The other threads are started when first needed, wait for further calls, and are joined at exit.
// A child after fork() has none of its parent's threads; it starts its own. A call while another
// thread's call is in progress runs on the caller alone.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& work);

// How many threads other than callers exist at this moment in this process. For tests.
int pool_size();

}  // namespace detr_fast::cpu
