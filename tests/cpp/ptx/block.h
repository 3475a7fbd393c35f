// Runs the blocks of a launch, thread by thread, and finds what is undefined: accesses outside of
// memory or not aligned, shared memory that is read before it is written, accesses of two threads
// without a barrier between them, and barriers that not all threads reach.
//
// Not covered: speed; what becomes of PTX on a GPU; streams, as launches run at once; that
// approximate instructions (exp2, reciprocal) are less exact there, and that NaN from arithmetic
// has no payload there.
#pragma once

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "program.h"
#include "shadow.h"

namespace ptx {

struct Size {
  uint32_t x, y, z;
};

// Memory that kernels may access: bytes by first address.
using Regions = std::map<uint64_t, uint64_t>;

struct Launch {
  const Kernel& kernel;
  Size grid;
  uint32_t threads;
  uint32_t dynamic_shared;  // bytes
  std::vector<char> parameters;
  const Regions& regions;
};

class Block;

class Warp {
 public:
  Warp(Block& block, uint8_t index);

  void start(Size block_index);
  // Runs all lanes up to a barrier of the block or to their end.
  void advance();
  void pass_barrier();
  Lanes at_barrier() const { return at_barrier_; }
  Lanes alive() const { return alive_; }

  template <class T>
  T get(uint32_t slot, int lane) const {
    const uint64_t& at = registers_[slot * kLanes + lane];
    if constexpr (std::is_same_v<T, bool>) return at != 0;  // constants may be -1
    T value;
    memcpy(&value, &at, sizeof value);
    return value;
  }

  // Integers are extended, so that wider registers hold the same number.
  template <class T>
  void set(uint32_t slot, int lane, T value) {
    uint64_t& at = registers_[slot * kLanes + lane];
    if constexpr (std::is_integral_v<T>) {
      at = static_cast<uint64_t>(value);
    } else {
      at = 0;
      memcpy(&at, &value, sizeof value);
    }
  }

  // The memory at a lane's address. `stored` is what it is going to be, for a write.
  char* memory(const Instruction& instruction, int lane, const char* stored = nullptr);

  [[noreturn]] void fail(const Instruction& instruction, int lane, const std::string& what) const;

 private:
  struct Group {
    Lanes lanes;
    uint32_t at;     // the next instruction
    uint32_t until;  // where other lanes wait to be joined
  };

  Group choose(Lanes ready);
  void run(Group group);
  Lanes gather(const Instruction& instruction, Lanes lanes);
  Lanes guarded(const Instruction& instruction, Lanes lanes) const;
  void leave(Lanes lanes, uint32_t at);

  Block& block_;
  const Kernel& kernel_;
  const uint8_t index_;
  std::vector<uint64_t> registers_;
  std::array<uint32_t, kLanes> next_{};  // each lane's next instruction
  Lanes alive_ = 0, at_barrier_ = 0, waiting_ = 0;
  uint32_t step_ = 0;
};

class Block {
 public:
  Block(const Launch& launch, uint32_t seed);

  void run(Size index);

 private:
  friend class Warp;

  char* memory(const Instruction& instruction, const Warp& warp, int lane, Moment now,
               uint64_t address, const char* stored);
  const char* note(const Instruction& instruction, Moment now, uint64_t address, bool is_change);
  bool is_allowed(uint64_t address, uint64_t bytes);

  const Launch& launch_;
  std::mt19937 random_;
  std::vector<Warp> warps_;
  std::vector<char> shared_;
  std::vector<char> parameters_;
  Shadows shared_shadows_, global_shadows_;
  std::pair<uint64_t, uint64_t> last_region_{0, 0};
  Size index_{};
  uint32_t number_ = 0, phase_ = 0, steps_ = 0;  // counted from 1, see Moment
};

// Throws std::runtime_error that names the kernel, the place in its source and the thread.
void run(const Launch& launch, uint32_t seed);

}  // namespace ptx
