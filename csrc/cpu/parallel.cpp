#include "cpu/parallel.h"

#include <algorithm>

#include "cpu/openmp.h"
#include "cpu/pool.h"

namespace detr_fast::cpu {
namespace {

// The work that justifies one more thread. Waking one takes as long as a few hundred thousand
// entries.
constexpr int64_t kEntriesPerAwakeThread = 50000, kEntriesPerThread = 400000;

}  // namespace

void parallel_for(int64_t count, int64_t entries, int threads,
                  const std::function<void(int64_t)>& work) {
  const int64_t most = std::min<int64_t>(threads, count);
  // Checked only where it matters, as it takes some microseconds.
  const bool awake = most > 1 && entries >= 2 * kEntriesPerAwakeThread && openmp_is_awake();
  const int64_t worthwhile = entries / (awake ? kEntriesPerAwakeThread : kEntriesPerThread);
  const int sharing = static_cast<int>(std::min(most, worthwhile));
  if (sharing > 1 &&
      (awake ? run_on_openmp(count, sharing, work) : run_on_pool(count, sharing - 1, work)))
    return;
  for (int64_t k = 0; k < count; ++k) work(k);
}

const char* threads_in_use() { return openmp_is_awake() ? "OpenMP" : "own"; }

}  // namespace detr_fast::cpu
