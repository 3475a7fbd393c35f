// The thread pool: all work is done exactly once, calls from several threads at once, fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"
#include "cpu/pool.h"
#include "cpu/problems.h"

using namespace detr_fast;
using namespace detr_fast::cpu;

namespace {

constexpr int64_t kMuch = 1 << 30;  // entries: enough for any number of threads

void check_all_done(int64_t count, int threads) {
  std::vector<int> done(count, 0);  // plain ints: each is written by one call only
  parallel_for(count, kMuch, threads, [&](int64_t k) { ++done[k]; });
  for (const int times : done) CHECK(times == 1);
}

// As many threads as asked for take part, though the pool has more.
void check_number_of_threads(int threads) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  const auto number = [&] {
    const std::lock_guard<std::mutex> lock(mutex);
    seen.insert(std::this_thread::get_id());
    return static_cast<int>(seen.size());
  };
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  parallel_for(100, kMuch, threads, [&](int64_t) {
    while (number() < threads && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // others would come meanwhile
  });
  CHECK(number() == threads);
}

// Threads that wake when a call is over do nothing, though the next call has begun.
void check_late_threads() {
  for (int repeat = 0; repeat < 20000; ++repeat) check_all_done(2, 8);
}

void check_first_fault() {
  // Later problems fail earlier, so that several threads have a fault to report.
  for (int repeat = 0; repeat < 20; ++repeat) {
    const Fault lowest = solve_all(8, kMuch, 4, [](int64_t p) -> Fault {
      std::this_thread::sleep_for(std::chrono::microseconds(100 * (8 - p)));
      return {Status::kInvalidCost, p};
    });
    CHECK(lowest.status == Status::kInvalidCost && lowest.problem == 0);
  }
  const Fault fault = solve_all(500, kMuch, 4, [](int64_t p) -> Fault {
    return p % 100 == 42 ? Fault{Status::kInvalidCost, p} : Fault{};
  });
  CHECK(fault.status == Status::kInvalidCost && fault.problem == 42);
  const Fault memory = solve_all(10, kMuch, 4, [](int64_t p) -> Fault {
    if (p == 3) throw std::bad_alloc();
    return {};
  });
  CHECK(memory.status == Status::kOutOfMemory && memory.problem == 3);
}

void check_fork() {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(pool_size() == 0);
    check_all_done(100, 3);
    CHECK(pool_size() == 2);
    std::exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

int main() {
  CHECK(std::string(threads_in_use()) == "own");  // this program has no OpenMP runtime
  check_all_done(10, 1);
  CHECK(pool_size() == 0);
  for (const int threads : {2, 4, 3, 8})
    for (const int64_t count : {0, 1, 2, 3, 100, 1000})
      for (int repeat = 0; repeat < 20; ++repeat) check_all_done(count, threads);
  CHECK(pool_size() == 7);
  for (const int threads : {1, 2, 3, 8}) check_number_of_threads(threads);
  check_late_threads();
  for (int repeat = 0; repeat < 50; ++repeat) check_first_fault();

  std::vector<std::thread> callers;
  for (int k = 0; k < 4; ++k)
    callers.emplace_back([] {
      for (int repeat = 0; repeat < 50; ++repeat) check_all_done(200, 4);
    });
  for (std::thread& caller : callers) caller.join();

#if !defined(__SANITIZE_THREAD__)  // ThreadSanitizer refuses to start threads after a fork
  check_fork();
  check_all_done(100, 4);
#else
  (void)check_fork;
#endif
}
