// A team: threads that solve one problem together. On a GPU it is a warp or a block
// (cuda/team.cuh); in the tests it is emulated, and its lanes run in shuffled order
// (tests/cpp/emulated_team.h). Code for teams is written once, as a template, and runs in every
// thread of the team. It may use:
//
//   Team    int rank(), size()   this thread's number, from 0, and the number of threads
//           void sync()          a barrier: all threads then see what any thread wrote before it
//           Key<U> min(Key<U>)   the least of all threads' keys, returned to every thread
//           uint32_t sum(uint32_t)
//   Warp    a Team of 32, with
//           uint32_t ballot(bool)  bit k: the argument of rank k
//           U least(U)             the least of 32-bit or 64-bit unsigned integers
//           float sum(float)       always added in the same order
//   Block   a Team of several warps, with
//           Warp warp(), int warp_index(), warps()
//           void lower(int32_t* x, int32_t value)   *x = min(*x, value), atomically
//
// Only sync orders memory accesses; the others do not. All threads of a team must call all of them
// in the same order, but for lower.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/host_device.h"

namespace detr_fast {

constexpr int kWarpSize = 32;

// Compared by value, then by index. The default is the largest possible key.
template <class U>
struct Key {
  U value = static_cast<U>(~U(0));
  uint32_t index = ~uint32_t(0);

  DETR_FAST_HD bool operator<(const Key& other) const {
    return value < other.value || (value == other.value && index < other.index);
  }
};

// Maps numbers to unsigned integers of the same order, whose minimum a GPU finds in one
// instruction.
DETR_FAST_HD inline uint32_t ordered(float x) {
  const uint32_t bits = bits_of_float(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

DETR_FAST_HD inline uint64_t ordered(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 63 ? ~uint64_t(0) : uint64_t(1) << 63);
}

// The inverse of the above.
DETR_FAST_HD inline float number_of(uint32_t key) {
  return float_of_bits(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

DETR_FAST_HD inline double number_of(uint64_t key) {
  const uint64_t bits = key ^ (key >> 63 ? uint64_t(1) << 63 : ~uint64_t(0));
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

template <class Real>
using OrderedKey = Key<decltype(ordered(Real()))>;

// The number of bits set below bit `rank`.
DETR_FAST_HD inline int bits_below(uint32_t mask, int rank) {
  const uint32_t below = mask & ((uint32_t(1) << rank) - 1);
#ifdef __CUDA_ARCH__
  return __popc(below);
#else
  return __builtin_popcount(below);
#endif
}

DETR_FAST_HD inline int count_bits(uint32_t mask) {
#ifdef __CUDA_ARCH__
  return __popc(mask);
#else
  return __builtin_popcount(mask);
#endif
}

// Calls use(i, load(i)) for the numbers i below count that are a thread's own: rank, rank + size
// and so on. kAhead loads are under way at once, as each takes longer than what `use` does with it.
template <int32_t kAhead, class Team, class Load, class Use>
DETR_FAST_KERNEL_PART void for_own(const Team& team, int32_t count, Load load, Use use) {
  const int32_t size = team.size();
  decltype(load(0)) ahead[kAhead];
  int32_t first = 0, i = team.rank();
  DETR_FAST_KEEP_LOOP
  for (; first + kAhead * size <= count; first += kAhead * size, i += kAhead * size) {
    DETR_FAST_UNROLL
    for (int32_t k = 0; k < kAhead; ++k) ahead[k] = load(i + k * size);
    DETR_FAST_UNROLL
    for (int32_t k = 0; k < kAhead; ++k) use(i + k * size, ahead[k]);
  }
  if (first == count) return;
  DETR_FAST_UNROLL
  for (int32_t k = 0; k < kAhead; ++k)
    if (i + k * size < count) ahead[k] = load(i + k * size);
  DETR_FAST_UNROLL
  for (int32_t k = 0; k < kAhead; ++k)
    if (i + k * size < count) use(i + k * size, ahead[k]);
}

// Calls put(position, i) for the numbers i in 0..count-1 for which chosen(i) holds, with positions
// 0, 1, ... in ascending order of i; returns how many there are.
template <class Warp, class Chosen, class Put>
DETR_FAST_HD int32_t compact(const Warp& warp, int32_t count, Chosen chosen, Put put) {
  int32_t written = 0;
  for (int32_t first = 0; first < count; first += kWarpSize) {
    const int32_t i = first + warp.rank();
    const bool is_chosen = i < count && chosen(i);
    const uint32_t mask = warp.ballot(is_chosen);
    if (is_chosen) put(written + bits_below(mask, warp.rank()), i);
    written += count_bits(mask);
  }
  return written;
}

}  // namespace detr_fast
