// The module's own threads, used when torch's are not available or asleep (openmp.h). They are not
// OpenMP threads: a second OpenMP runtime in one process would oversubscribe the cores and hang
// after a fork.
#pragma once

#include <cstdint>
#include <functional>

namespace detr_fast::cpu {

// Calls work(k) for each k in 0..count-1 on the caller and up to `helpers` threads of the pool.
// Returns false, without doing anything, if another thread's call is in progress.
//
// The threads are started when first needed, wait for further calls, and are joined at exit. After
// fork() the child has none of its parent's threads and starts its own.
bool run_on_pool(int64_t count, int helpers, const std::function<void(int64_t)>& work);

// The number of threads that the pool now has in this process. For tests.
int pool_size();

}  // namespace detr_fast::cpu
