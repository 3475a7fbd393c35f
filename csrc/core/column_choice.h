// The few columns in which the search may go on where most rows want the same ones, and the proof
// afterwards that no other column would have been better.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/aligned.h"

namespace detr_fast {

template <class Real, class Scan>
class ColumnChoice {
 public:
  explicit ColumnChoice(Scan scan) : scan_(scan) {}

  std::vector<int32_t> columns;  // the chosen ones, ascending
  Real least_gap;                // from a row's minimum to its dearest cost that counted, the least

  // Chooses the columns that some row has among its cheapest rows / 8 or somewhat more; in problems
  // of untrained models a row nearly always ends with one of all these. Where rows agree so much
  // that too few are chosen, twice as many of each are taken, and so on; some optimal assignment
  // gives each row one of its `rows` cheapest columns. Returns false if too few would be left out
  // to be worth it.
  //
  // cost(i) are the costs [stride] of row i, from `cols` on infinity; least [rows] their minima.
  template <class Costs>
  bool choose(Costs cost, int32_t rows, int32_t cols, int32_t stride, const double* least) {
    columns.clear();
    if (cols < kFewestColumns || rows < kFewestRows) return false;
    // As measured: more would make the search wider, fewer fail more often where rows are many.
    int64_t wanted = rows / 8 + int64_t{rows} * rows / 1200 + 4;
    for (; 2 * wanted < cols; wanted *= 2) {
      mark(cost, rows, cols, stride, least, static_cast<int32_t>(wanted));
      const bool enough =
          wanted >= rows || columns.size() >= static_cast<size_t>(rows) + rows / 8 + 1;
      if (enough && columns.size() >= static_cast<size_t>(rows))
        return columns.size() <= static_cast<size_t>(cols) / 8 * 7;
    }
    return false;
  }

  // Whether no row has a column that was not chosen and costs less than price(i), which is what
  // taking one would save.
  template <class Costs, class Price>
  bool is_complete(Costs cost, int32_t rows, int32_t stride, Price price) {
    left_out_.assign(stride, Real(0));
    for (const int32_t j : columns) left_out_[j] = std::numeric_limits<Real>::infinity();
    for (int32_t i = 0; i < rows; ++i)
      if (static_cast<double>(scan_.least_sum(cost(i), left_out_.data(), stride)) < price(i))
        return false;
    return true;
  }

 private:
  template <class Costs>
  void mark(Costs cost, int32_t rows, int32_t cols, int32_t stride, const double* least,
            int32_t wanted) {
    excess_.assign(stride, std::numeric_limits<Real>::infinity());
    // From a row's minimum to its limit, which is alike in the rows of one problem.
    Real gap = std::max(cost(0)[0], cost(0)[cols / 2]) - static_cast<Real>(least[0]);
    least_gap = std::numeric_limits<Real>::max();
    for (int32_t i = 0; i < rows; ++i) {
      const Real* const c = cost(i);
      const Real first = static_cast<Real>(least[i]);
      const Real limit = find_limit(c, cols, stride, first, gap, wanted);
      gap = limit - first;
      least_gap = std::min(least_gap, gap);
      scan_.mark_up_to(c, limit, stride, excess_.data());
    }
    columns.clear();
    for (int32_t j = 0; j < cols; ++j)
      if (excess_[j] <= 0) columns.push_back(j);
  }

  // A value that `wanted` to 2 * `wanted` of the entries do not exceed, from a first guess.
  Real find_limit(const Real* c, int32_t cols, int32_t stride, Real first, Real gap,
                  int32_t wanted) {
    Real low = 0, high = 0;  // of the gap; high = 0: not known
    for (int tries = 0; tries < 6; ++tries) {
      const int32_t count = scan_.count_up_to(c, first + gap, stride);
      if (count >= wanted && count <= 2 * wanted) return first + gap;
      (count < wanted ? low : high) = gap;
      gap = high > 0 ? (low + high) / 2 : 2 * gap;
    }
    return exact_limit(c, cols, wanted);
  }

  Real exact_limit(const Real* c, int32_t cols, int32_t wanted) {
    sorted_.assign(c, c + cols);
    std::nth_element(sorted_.begin(), sorted_.begin() + (wanted - 1), sorted_.end());
    return sorted_[wanted - 1];
  }

  // Below, choosing takes longer than it saves.
  static constexpr int32_t kFewestColumns = 128;
  static constexpr int32_t kFewestRows = 7;

  Scan scan_;
  AlignedVector<Real> excess_;    // [stride] not positive in columns within some row's limit
  AlignedVector<Real> left_out_;  // [stride] 0, infinity in chosen columns
  std::vector<Real> sorted_;
};

}  // namespace detr_fast
