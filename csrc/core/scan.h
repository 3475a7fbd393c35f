// What the assignment solver does to a row of costs: the loops in which it spends its time, in
// plain scalars. cpu/simd/scan_kernels.h has the same functions on vectors.
#pragma once

#include <cstdint>
#include <limits>

namespace detr_fast {

// `col` is -1 and `value` infinity where no value is finite.
template <class Real>
struct Minimum {
  Real value;
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

  // sum += min(c - least, most).
  static void accumulate(const Real* c, Real least, Real most, int32_t n, Real* sum) {
    for (int32_t j = 0; j < n; ++j) {
      const Real x = c[j] - least;
      sum[j] += x < most ? x : most;
    }
  }

  // How many c[j] <= limit.
  static int32_t count_up_to(const Real* c, Real limit, int32_t n) {
    int32_t count = 0;
    for (int32_t j = 0; j < n; ++j) count += c[j] <= limit;
    return count;
  }

  // The least c[j] + d[j].
  static Real least_sum(const Real* c, const Real* d, int32_t n) {
    Real least = std::numeric_limits<Real>::infinity();
    for (int32_t j = 0; j < n; ++j) least = c[j] + d[j] < least ? c[j] + d[j] : least;
    return least;
  }

  // keep[j] = min(keep[j], c[j] - limit): not positive where c[j] <= limit.
  static void mark_up_to(const Real* c, Real limit, int32_t n, Real* keep) {
    for (int32_t j = 0; j < n; ++j) {
      const Real excess = c[j] - limit;
      keep[j] = excess < keep[j] ? excess : keep[j];
    }
  }
};

}  // namespace detr_fast
