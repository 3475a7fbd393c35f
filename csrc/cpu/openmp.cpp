#include "cpu/openmp.h"

#ifndef __linux__

namespace detr_fast::cpu {

bool openmp_is_awake() { return false; }
bool run_on_openmp(int64_t, int, const std::function<void(int64_t)>&) { return false; }

}  // namespace detr_fast::cpu

#else

#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cpu/counter.h"

namespace detr_fast::cpu {
namespace {

// The function that compilers call for `#pragma omp parallel`: it runs fn(data) once in each thread
// of a team of `threads` threads, 0 = as many as torch has set. The runtimes of GNU, LLVM and Intel
// all have it.
using Parallel = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

struct Runtime {
  Parallel parallel = nullptr;
  bool always = false;

  Runtime() {
    const char* const choice = std::getenv("DETR_FAST_THREADS");
    if (choice && std::strcmp(choice, "own") == 0) return;
    always = choice && std::strcmp(choice, "openmp") == 0;
    parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  }
};

// Looked up at the first use: by then torch is loaded, if it is used at all.
const Runtime& runtime() {
  static const Runtime instance;
  return instance;
}

// Whether the process began as a fork of another and has not called exec since: the kernel's flag
// PF_FORKNOEXEC, in the ninth field of a line whose second field is a name in parentheses.
bool began_as_fork() {
  char line[512];
  std::FILE* const file = std::fopen("/proc/self/stat", "r");
  if (!file) return false;
  line[std::fread(line, 1, sizeof line - 1, file)] = 0;
  std::fclose(file);
  const char* const name_end = std::strrchr(line, ')');
  unsigned flags = 0;
  if (!name_end || std::sscanf(name_end, ") %*c %*d %*d %*d %*d %*d %u", &flags) != 1) return false;
  return (flags & 0x40u) != 0;
}

// The fork may happen before the module is loaded, or later, before the first call.
std::atomic<bool> is_forked_child{began_as_fork()};
[[maybe_unused]] const int registered = pthread_atfork(
    nullptr, nullptr, [] { is_forked_child.store(true, std::memory_order_relaxed); });

// Each calling thread has its own team, and observes one other thread of it. kUnknown: none seen
// yet; kKnown: worker_clock measures that thread's CPU time; kNone: the team is the caller alone.
enum class Worker { kUnknown, kKnown, kNone };
thread_local Worker worker = Worker::kUnknown;
thread_local clockid_t worker_clock;

int64_t nanoseconds(const timespec& t) { return t.tv_sec * int64_t{1000000000} + t.tv_nsec; }

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return nanoseconds(t);
}

// Whether that thread is running at this moment, be it only spinning while it waits for work.
bool is_worker_awake() {
  constexpr int64_t kLook = 2000;  // ns of observation
  timespec before, after;
  if (clock_gettime(worker_clock, &before) != 0) {
    worker = Worker::kUnknown;  // the thread has ended; the next call finds another
    return true;
  }
  for (const int64_t start = now(); now() - start < kLook;) {
  }
  return clock_gettime(worker_clock, &after) == 0 && nanoseconds(after) > nanoseconds(before);
}

struct Job {
  const std::function<void(int64_t)>& work;
  const int64_t count;
  const int sharing;
  const pthread_t caller = pthread_self();
  std::atomic<int> arrived{0};
  std::atomic<int64_t> next{0};
  std::atomic<bool> has_worker{false};
  clockid_t clock_of_worker = {};

  // The team is always torch's whole team: for a team of another size the runtime would end threads
  // and start them again. The first `sharing` threads to arrive share the work, the others return.
  void take() {
    if (!pthread_equal(pthread_self(), caller) && !has_worker.exchange(true))
      if (pthread_getcpuclockid(pthread_self(), &clock_of_worker) != 0)
        clock_of_worker = CLOCK_MONOTONIC;  // always awake, then
    if (arrived.fetch_add(1, std::memory_order_relaxed) >= sharing) return;
    take_all(next, count, work);
  }
};

}  // namespace

bool openmp_is_awake() {
  if (is_forked_child.load(std::memory_order_relaxed) || !runtime().parallel) return false;
  if (runtime().always || worker == Worker::kUnknown) return true;
  return worker == Worker::kKnown && is_worker_awake();
}

bool run_on_openmp(int64_t count, int sharing, const std::function<void(int64_t)>& work) {
  static std::mutex calling;
  const std::unique_lock<std::mutex> call(calling, std::try_to_lock);
  if (!call.owns_lock()) return false;
  Job job{work, count, sharing};
  runtime().parallel([](void* job) { static_cast<Job*>(job)->take(); }, &job, 0, 0);
  worker = job.has_worker.load() ? Worker::kKnown : Worker::kNone;
  worker_clock = job.clock_of_worker;
  return true;
}

}  // namespace detr_fast::cpu

#endif
