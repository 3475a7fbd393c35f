#include "cpu/pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

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

  // Returns false, having done nothing, if another thread's call is in progress.
  bool run(int64_t count, int helpers, const std::function<void(int64_t)>& work) {
    const std::unique_lock<std::mutex> call(calling_, std::try_to_lock);
    if (!call.owns_lock()) return false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(threads_.size()) < helpers) {
        const int number = static_cast<int>(threads_.size());
        try {
          threads_.emplace_back([this, number] { serve(number); });
        } catch (const std::system_error&) {
          break;  // the system has no more threads: those there are, and the caller, do the work
        }
      }
      work_ = &work;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      invited_ = std::min(helpers, static_cast<int>(threads_.size()));
      busy_ = invited_;
      ++round_;
    }
    wake_.notify_all();
    take(work, count);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    work_ = nullptr;
    return true;
  }

  int size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(threads_.size());
  }

 private:
  void take(const std::function<void(int64_t)>& work, int64_t count) {
    for (;;) {
      const int64_t k = next_.fetch_add(1, std::memory_order_relaxed);
      if (k >= count) return;
      work(k);
    }
  }

  void serve(int number) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      if (number >= invited_) continue;
      const std::function<void(int64_t)>& work = *work_;
      const int64_t count = count_;
      lock.unlock();
      take(work, count);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex calling_;  // held by the one call in progress
  std::mutex mutex_;    // guards what follows, except next_
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t count_ = 0;
  uint64_t round_ = 0;  // counts calls, so that a thread knows a new one
  int invited_ = 0;     // threads of a lower number take part in this round
  int busy_ = 0;        // of those, how many have not finished
  bool stopping_ = false;
  std::atomic<int64_t> next_{0};
};

// Destroyed, and with it joined, at exit or when the module is unloaded.
struct Holder {
  Pool* pool = new Pool;

  Holder() {
#ifndef _WIN32
    // The parent's threads do not exist in the child, and its mutexes may be held by them: the
    // child leaves that pool's memory alone and begins with an empty one.
    pthread_atfork(nullptr, nullptr, [] { holder().pool = new Pool; });
#endif
  }
  ~Holder() { delete pool; }

  static Holder& holder() {
    static Holder one;
    return one;
  }
};

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& work) {
  const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
  if (helpers > 0 && Holder::holder().pool->run(count, helpers, work)) return;
  for (int64_t k = 0; k < count; ++k) work(k);
}

int pool_size() { return Holder::holder().pool->size(); }

}  // namespace detr_fast::cpu
