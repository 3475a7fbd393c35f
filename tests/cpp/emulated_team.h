// Teams of threads (core/team.h) without a GPU: every lane is a fiber with its own stack, which
// runs until the next operation in which it must meet other lanes. The order in which lanes resume
// is shuffled, so code that reads what another lane has not written yet, or overwrites what another
// has not read yet, gives different results for different seeds. ThreadSanitizer is informed that
// only sync orders memory, and so reports every pair of conflicting accesses that no sync
// separates.
//
// A test fails if lanes meet in different operations, or if a lane ends while others wait for it.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "check.h"
#include "core/team.h"

#if defined(__SANITIZE_THREAD__)
#define DETR_FAST_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define DETR_FAST_ASAN 1
#endif

#ifdef DETR_FAST_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif
#ifdef DETR_FAST_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
#endif

namespace detr_fast {

// During its lifetime ThreadSanitizer ignores accesses: the emulation's own data are not the
// kernels'.
struct Unobserved {
#ifdef DETR_FAST_TSAN
  Unobserved() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unobserved() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  ~Unobserved() {}
#endif
};

class Fibers {
 public:
  // Runs body(k) for k in 0..count-1, each in a fiber.
  void run(int count, uint32_t seed, const std::function<void(int)>& body) {
    const Unobserved unobserved;
    while (static_cast<int>(fibers_.size()) < count) fibers_.push_back(make(fibers_.size()));
    body_ = &body;
    std::mt19937 random(seed);
    std::vector<int> ready;
    for (int k = 0; k < count; ++k) {
      fibers_[k]->state = kReady;
      ready.push_back(k);
    }
    int ended = 0;
    while (ended < count) {
      std::shuffle(ready.begin(), ready.end(), random);
      for (const int k : ready) {
        current_ = k;
        switch_to_fiber(*fibers_[k]);
        ended += fibers_[k]->state == kEnded;
      }
      ready.clear();
      for (int k = 0; k < count; ++k)
        if (fibers_[k]->state == kReady) ready.push_back(k);
      CHECK(ended == count || !ready.empty());  // else lanes wait for lanes that never arrive
    }
  }

  // Called in a fiber: resumes once another fiber has made it ready.
  void wait() {
    const int k = current_;
    fibers_[k]->state = kWaiting;
    switch_to_main(*fibers_[k]);
  }

  void make_ready(int k) { fibers_[k]->state = kReady; }
  int current() const { return current_; }

 private:
  enum State { kReady, kWaiting, kEnded };
  static constexpr size_t kStack = 256 << 10;

  struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(kStack);
    State state = kEnded;
    bool started = false;
    void* sanitizer = nullptr;  // the sanitizer's handle of this fiber
  };

  static Fibers*& active() {
    static Fibers* fibers;
    return fibers;
  }

  std::unique_ptr<Fiber> make(size_t) {
    auto fiber = std::make_unique<Fiber>();
#ifdef DETR_FAST_TSAN
    fiber->sanitizer = __tsan_create_fiber(0);
#endif
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.data();
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, &Fibers::entry, 0);
    return fiber;
  }

  static void entry() {
    std::optional<Unobserved> unobserved(std::in_place);
    Fibers& self = *active();
    self.arrived_in_fiber(nullptr);
    for (;;) {
      const int lane = self.current_;
      unobserved.reset();
      (*self.body_)(lane);
      unobserved.emplace();
      const int k = self.current_;
      self.fibers_[k]->state = kEnded;
      self.switch_to_main(*self.fibers_[k]);
    }
  }

  void arrived_in_fiber(void* fake_stack) {
#ifdef DETR_FAST_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &main_bottom_, &main_size_);
#else
    (void)fake_stack;
#endif
  }

  void switch_to_fiber(Fiber& fiber) {
    active() = this;
#ifdef DETR_FAST_TSAN
    main_sanitizer_ = __tsan_get_current_fiber();
    // The first switch orders memory: what the caller prepared is visible to all lanes.
    __tsan_switch_to_fiber(fiber.sanitizer, fiber.started ? 1 : 0);
#endif
    fiber.started = true;
#ifdef DETR_FAST_ASAN
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.data(), kStack);
#endif
    swapcontext(&main_, &fiber.context);
#ifdef DETR_FAST_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  void switch_to_main(Fiber& fiber) {
#ifdef DETR_FAST_TSAN
    const bool ended = fiber.state == kEnded;
    if (ended) fiber.started = false;  // the next run is another kernel
    __tsan_switch_to_fiber(main_sanitizer_, ended ? 0 : 1);
#endif
    void* fake_stack = nullptr;
#ifdef DETR_FAST_ASAN
    __sanitizer_start_switch_fiber(&fake_stack, main_bottom_, main_size_);
#endif
    swapcontext(&fiber.context, &main_);
    arrived_in_fiber(fake_stack);
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  const std::function<void(int)>* body_ = nullptr;
  ucontext_t main_;
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
  void* main_sanitizer_ = nullptr;
  int current_ = 0;
};

// Where the lanes of a team meet.
class Meeting {
 public:
  Meeting(Fibers& fibers, int first, int size)
      : fibers_(fibers), first_(first), size_(size), given_(size), result_(size) {}

  // Each lane passes a number, and see(rank, number) is then called with every lane's. `operation`
  // must be the same in all lanes.
  template <class T, class See>
  void exchange(int rank, int operation, T mine, See see) {
    const Unobserved unobserved;
    static_assert(sizeof(T) <= sizeof(Word), "");
    if (arrived_ == 0) operation_ = operation;
    CHECK(operation == operation_);
    memcpy(given_[rank].part, &mine, sizeof mine);
    if (++arrived_ < size_) {
      fibers_.wait();
    } else {
      result_ = given_;
      arrived_ = 0;
      for (int k = 0; k < size_; ++k)
        if (k != rank) fibers_.make_ready(first_ + k);
    }
    for (int k = 0; k < size_; ++k) {
      T other;
      memcpy(static_cast<void*>(&other), result_[k].part, sizeof other);
      see(k, other);
    }
  }

  void sync(int rank) {
#ifdef DETR_FAST_TSAN
    __tsan_release(this);
#endif
    exchange(rank, kSync, 0, [](int, int) {});
#ifdef DETR_FAST_TSAN
    __tsan_acquire(this);
#endif
  }

  enum Operation { kSync, kMin, kSum, kFloatSum, kBallot };

 private:
  struct Word {
    uint64_t part[2];
  };
  Fibers& fibers_;
  const int first_, size_;
  int arrived_ = 0, operation_ = 0;
  std::vector<Word> given_, result_;
};

class EmulatedTeam {
 public:
  EmulatedTeam(Meeting& meeting, int rank, int size)
      : meeting_(meeting), rank_(rank), size_(size) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  void sync() const { meeting_.sync(rank_); }

  template <class U>
  Key<U> min(Key<U> key) const {
    Key<U> least = key;
    meeting_.exchange(rank_, Meeting::kMin, key, [&](int, const Key<U>& other) {
      if (other < least) least = other;
    });
    return least;
  }

  uint32_t sum(uint32_t x) const {
    uint32_t total = 0;
    meeting_.exchange(rank_, Meeting::kSum, x, [&](int, uint32_t y) { total += y; });
    return total;
  }

 protected:
  Meeting& meeting_;
  const int rank_, size_;
};

class EmulatedWarp : public EmulatedTeam {
 public:
  EmulatedWarp(Meeting& meeting, int rank) : EmulatedTeam(meeting, rank, kWarpSize) {}

  uint32_t ballot(bool x) const {
    uint32_t mask = 0;
    meeting_.exchange(rank_, Meeting::kBallot, x,
                      [&](int k, bool y) { mask |= static_cast<uint32_t>(y) << k; });
    return mask;
  }

  template <class U>
  U least(U x) const {
    return min(Key<U>{x, 0}).value;
  }

  float sum(float x) const {  // in the GPU's order: halves, quarters, ...
    float all[kWarpSize];
    meeting_.exchange(rank_, Meeting::kFloatSum, x, [&](int k, float y) { all[k] = y; });
    for (int step = kWarpSize / 2; step > 0; step /= 2)
      for (int k = 0; k < step; ++k) all[k] += all[k + step];
    return all[0];
  }
  using EmulatedTeam::sum;
};

class EmulatedBlock : public EmulatedTeam {
 public:
  EmulatedBlock(Meeting& all, Meeting& of_warp, int rank, int warps)
      : EmulatedTeam(all, rank, warps * kWarpSize), of_warp_(of_warp) {}
  EmulatedWarp warp() const { return {of_warp_, rank_ % kWarpSize}; }
  int warp_index() const { return rank_ / kWarpSize; }
  int warps() const { return size_ / kWarpSize; }

  void lower(int32_t* x, int32_t value) const {
    int32_t seen = __atomic_load_n(x, __ATOMIC_RELAXED);
    while (value < seen && !__atomic_compare_exchange_n(x, &seen, value, false, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED)) {
    }
  }

 private:
  Meeting& of_warp_;
};

// Runs body(block) in every thread of a block of `warps` warps.
template <class Body>
void emulate(int warps, uint32_t seed, const Body& body) {
  static Fibers fibers;
  const int count = warps * kWarpSize;
  Meeting all(fibers, 0, count);
  std::vector<std::unique_ptr<Meeting>> of_warp;
  for (int w = 0; w < warps; ++w)
    of_warp.push_back(std::make_unique<Meeting>(fibers, w * kWarpSize, kWarpSize));
  fibers.run(count, seed, [&](int k) {
    EmulatedBlock block(all, *of_warp[k / kWarpSize], k, warps);
    body(block);
  });
}

}  // namespace detr_fast
