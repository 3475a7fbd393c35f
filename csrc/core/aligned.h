// Vectors whose memory begins at a cache line. The widest registers are as wide as a line: with any
// other alignment every access would touch two lines, which halves the speed of the cost kernel.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace detr_fast {

template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  friend bool operator==(LineAllocator, LineAllocator) { return true; }
  friend bool operator!=(LineAllocator, LineAllocator) { return false; }
};

template <class T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

// Makes room for n elements; never shrinks, so that nothing is initialised twice.
template <class T>
T* grow(AlignedVector<T>& memory, size_t n) {
  if (memory.size() < n) memory.resize(n);
  return memory.data();
}

}  // namespace detr_fast
