#include "cpu/pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/counter.h"

namespace detr_fast::cpu {
namespace {

class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // Returns false, without doing anything, if another thread's call is in progress.
  bool run(int64_t count, int helpers, const std::function<void(int64_t)>& work) {
    const std::unique_lock<std::mutex> call(calling_, std::try_to_lock);
    if (!call.owns_lock()) return false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(threads_.size()) < helpers) {
        const int number = static_cast<int>(threads_.size());
        try {
          threads_.emplace_back([this, number] { serve(number); });
          cpus_.push_back(-1);
        } catch (const std::system_error&) {
          break;  // no more threads available: the existing ones and the caller do the work
        }
      }
      work_ = &work;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      invited_ = std::min(helpers, static_cast<int>(threads_.size()));
      ++round_;
      move_off_caller_cpu();
    }
    wake_.notify_all();
    take_all(next_, count, work);
    std::unique_lock<std::mutex> lock(mutex_);
    work_ = nullptr;  // a thread that wakes only now has nothing to do, and is not waited for
    done_.wait(lock, [this] { return busy_ == 0; });
    return true;
  }

  int size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(threads_.size());
  }

 private:
  // Linux may wake a thread on the CPU where it last ran, even if the caller is running there and
  // another CPU is idle. The two then take turns, no faster than one thread. So a thread that last
  // ran on the caller's CPU is moved to another.
  void move_off_caller_cpu() {
#ifdef __linux__
    const int here = sched_getcpu();
    for (int k = 0; k < invited_; ++k) {
      if (here < 0 || cpus_[k] != here) continue;
      cpu_set_t allowed;
      if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
      CPU_CLR(here, &allowed);
      if (CPU_COUNT(&allowed) == 0) return;
      pthread_setaffinity_np(threads_[k].native_handle(), sizeof allowed, &allowed);
    }
#endif
  }

  static int current_cpu() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
  }

  void serve(int number) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      if (number >= invited_ || !work_) continue;
      const std::function<void(int64_t)>& work = *work_;
      const int64_t count = count_;
      ++busy_;
      lock.unlock();
      take_all(next_, count, work);
      lock.lock();
      cpus_[number] = current_cpu();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex calling_;  // held by the one call in progress
  std::mutex mutex_;    // guards what follows, except next_
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  std::vector<int> cpus_;  // where each thread last worked; -1: unknown
  const std::function<void(int64_t)>* work_ = nullptr;  // of the call in progress
  int64_t count_ = 0;
  uint64_t round_ = 0;  // counts calls, so that a thread recognises a new one
  int invited_ = 0;     // threads with a lower number take part in this round
  int busy_ = 0;        // how many of those are working
  bool stopping_ = false;
  std::atomic<int64_t> next_{0};
};

// Destroys the pool, and so joins its threads, at exit or when the module is unloaded.
struct Holder {
  Pool* pool = new Pool;

  Holder() {
    // In the child the parent's threads do not exist, and may have left its mutexes locked: the
    // child leaves that pool's memory untouched and starts with an empty pool.
    pthread_atfork(nullptr, nullptr, [] { holder().pool = new Pool; });
  }
  ~Holder() { delete pool; }

  static Holder& holder() {
    static Holder instance;
    return instance;
  }
};

}  // namespace

bool run_on_pool(int64_t count, int helpers, const std::function<void(int64_t)>& work) {
  return Holder::holder().pool->run(count, helpers, work);
}

int pool_size() { return Holder::holder().pool->size(); }

}  // namespace detr_fast::cpu
