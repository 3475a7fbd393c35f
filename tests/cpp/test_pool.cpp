// The thread pool: all work is done exactly once, calls from several threads at once, fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
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

void check_first_fault() {
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
