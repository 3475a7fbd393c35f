// What the assignment solver does to a row of costs: the loops in which it spends its time, in
// plain scalars. cpu/simd/scan_kernels.h has the same functions on vectors.
#pragma once

#include <cstdint>
#include <limits>

namespace detr_fast {

// Floats in a row of costs are padded to a multiple of this with infinity, for every instruction
// set alike: loops over a row need no remainder.
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

// A row's cheapest column, and what its second cheapest costs; both infinity and -1 as above.
template <class Real>
struct Offer {
  Real cost, next;
  int32_t col;
};

// A row's entries c[0..n) and their columns' dual variables v[0..n). owner[j] < 0: column j is
// free. Ties are common in costs of integers, and a free column ends a search: among columns of the
// same value a free one is found first, and otherwise the leftmost.
template <class Real>
struct PlainScan {
  static Minimum<Real> row_minimum(const Real* c, int32_t n, const int32_t* owner) {
    Minimum<Real> found = {std::numeric_limits<Real>::infinity(), -1};
    for (int32_t j = 0; j < n; ++j)
      if (c[j] < found.value ||
          (c[j] == found.value && found.col >= 0 && owner[j] < 0 && owner[found.col] >= 0))
        found = {c[j], j};
    return found;
  }

  // distance = min(distance, base + c - v); the minimum of distance.
  static Minimum<double> relax(const Real* c, const double* v, double* distance, int32_t n,
                               double base, const int32_t* owner) {
    for (int32_t j = 0; j < n; ++j) {
      const double candidate = base + static_cast<double>(c[j]) - v[j];
      distance[j] = candidate < distance[j] ? candidate : distance[j];
    }
    return PlainScan<double>::row_minimum(distance, n, owner);
  }

  // The least c + price, and the least of the other columns'.
  static Offer<Real> cheapest(const Real* c, const Real* price, int32_t n, const int32_t* owner) {
    constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
    Offer<Real> found = {kInfinity, kInfinity, -1};
    for (int32_t j = 0; j < n; ++j) {
      const Real cost = c[j] + price[j];
      if (cost < found.cost ||
          (cost == found.cost && found.col >= 0 && owner[j] < 0 && owner[found.col] >= 0))
        found = {cost, found.cost, j};
      else if (cost < found.next)
        found.next = cost;
    }
    return found;
  }
};

}  // namespace detr_fast
