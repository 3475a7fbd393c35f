// The loops over a row of costs in which the assignment solver spends its time, in plain scalars.
// cpu/simd/scan_kernels.h has the same functions on vectors.
#pragma once

#include <cstdint>
#include <limits>

namespace detr_fast {

// Rows of costs are padded with infinity to a multiple of this many entries, the same for every
// instruction set, so that loops over a row need no remainder loop.
constexpr int64_t kRowAlignment = 16;

inline constexpr int64_t padded(int64_t n) {
  return (n + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
}

// `col` is -1 and `value` infinity where no value is finite.
template <class Real>
struct Minimum {
  Real value;
  int32_t col;
};

// A row's cheapest column, its cost, and the cost of the second cheapest column (`next`); infinity
// and -1 as above.
template <class Real>
struct Offer {
  Real cost, next;
  int32_t col;
};

// Scans a row's entries c[0..n), with their columns' dual variables v[0..n). owner[j] < 0: column j
// is free. Integer costs often tie, and a free column ends a search: of columns with the same value
// the first free one is returned, or the first one if none is free.
template <class Real>
struct PlainScan {
  static Minimum<Real> row_minimum(const Real* c, int32_t n, const int32_t* owner) {
    Minimum<Real> least = {std::numeric_limits<Real>::infinity(), -1};
    for (int32_t j = 0; j < n; ++j)
      if (c[j] < least.value ||
          (c[j] == least.value && least.col >= 0 && owner[j] < 0 && owner[least.col] >= 0))
        least = {c[j], j};
    return least;
  }

  // Sets distance = min(distance, base + c - v); returns the minimum of distance.
  static Minimum<double> relax(const Real* c, const double* v, double* distance, int32_t n,
                               double base, const int32_t* owner) {
    for (int32_t j = 0; j < n; ++j) {
      const double candidate = base + static_cast<double>(c[j]) - v[j];
      distance[j] = candidate < distance[j] ? candidate : distance[j];
    }
    return PlainScan<double>::row_minimum(distance, n, owner);
  }

  // The least c + price, and the least c + price of the other columns.
  static Offer<Real> cheapest(const Real* c, const Real* price, int32_t n, const int32_t* owner) {
    constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
    Offer<Real> best = {kInfinity, kInfinity, -1};
    for (int32_t j = 0; j < n; ++j) {
      const Real cost = c[j] + price[j];
      if (cost < best.cost ||
          (cost == best.cost && best.col >= 0 && owner[j] < 0 && owner[best.col] >= 0))
        best = {cost, best.cost, j};
      else if (cost < best.next)
        best.next = cost;
    }
    return best;
  }
};

}  // namespace detr_fast
