// The rectangular linear assignment problem by shortest augmenting paths: R. Jonker and A.
// Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment
// problems", Computing 38 (1987), in the rectangular form of D. F. Crouse, "On implementing 2D
// rectangular assignment algorithms", IEEE Trans. Aerospace and Electronic Systems 52 (2016).
//
// Rows are targets, columns are queries, rows <= cols. Invariants between two steps:
//   cost[i][j] - u[i] - v[j] >= 0, and = 0 where row i holds column j (complementary slackness);
//   v[j] <= 0, and v[j] = 0 where column j is free.
// Once every row holds a column, they prove that the assignment is optimal. All arithmetic on dual
// variables is in double.
//
// 1. Each row takes its cheapest column, if that is free. The problems of a trained model usually
//    end here.
// 2. Where many rows compete for the same columns, an auction (core/auction.h) finds prices, and at
//    these each row takes its cheapest column again. Some columns are then free with v[j] < 0:
//    they are released first (core/search.h), which restores the last invariant.
// 3. Searches (core/search.h) assign the remaining rows.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/assignment_state.h"
#include "core/auction.h"
#include "core/scan.h"
#include "core/search.h"
#include "core/status.h"

namespace detr_fast {

// Keeps its memory from one problem to the next. Scan: the loops over a row, with the interface of
// PlainScan.
template <class Real, class Scan = PlainScan<Real>>
class AssignmentSolver {
 public:
  using Fetch = typename AssignmentState<Real>::Fetch;

  explicit AssignmentSolver(Scan scan = {})
      : scan_(scan), auction_(scan, state_), search_(scan, state_) {}
  AssignmentSolver(const AssignmentSolver&) = delete;  // members refer to state_
  AssignmentSolver& operator=(const AssignmentSolver&) = delete;

  // Solves cost [rows, stride], whose columns from `cols` on are padding and hold infinity.
  // Requires rows <= cols, no NaN and no -infinity; +infinity forbids a pair. `minima` [rows], if
  // given, are the rows' minima. `rows_on_demand`, if given, is called before a row is first read
  // and writes that row's costs. Sums of doubles beyond 1e300 may overflow.
  Status solve(const Real* cost, int64_t rows, int64_t cols, int64_t stride,
               const Minimum<Real>* minima = nullptr, Fetch rows_on_demand = {}) {
    if (stride > std::numeric_limits<int32_t>::max()) return Status::kTooLarge;
    state_.start(cost, rows, cols, stride, rows_on_demand);
    if (!start_greedily(minima)) return Status::kInfeasible;
    if (is_contested() && auction_.run()) {
      if (start_at_prices()) {
        if (rows < cols) search_.release(auction_.bought_cols());
        if (search_from_free_rows() && are_prices_precise()) return Status::kOk;
      }
      state_.reset_prices();
      start_greedily(minima);
    }
    return search_from_free_rows() ? Status::kOk : Status::kInfeasible;
  }

  // The result: [rows] and [stride], -1 = free.
  const std::vector<int32_t>& col_of_row() const { return state_.col_of_row; }
  const std::vector<int32_t>& row_of_col() const { return state_.row_of_col; }

 private:
  // Setting u to the row's minimum keeps all reduced costs >= 0. A row whose cheapest column is
  // free takes it.
  bool start_greedily(const Minimum<Real>* minima) {
    for (int32_t i = 0; i < state_.rows; ++i) {
      Minimum<Real> cheapest;
      if (minima) cheapest = minima[i];
      // Among columns of equal cost, only the scan prefers a free one.
      if (!minima || (cheapest.col >= 0 && state_.row_of_col[cheapest.col] >= 0))
        cheapest = scan_.row_minimum(state_.row(i), state_.stride, state_.row_of_col.data());
      if (cheapest.col < 0) return false;
      assign_if_free(i, cheapest.value, cheapest.col);
    }
    return true;
  }

  // Whether an auction saves more time than it takes, as measured with DETR's costs and random
  // costs.
  bool is_contested() const {
    const int64_t free = static_cast<int64_t>(state_.free_rows.size());
    const int64_t rows = state_.rows, cols = state_.cols;
    // With independent random costs and as many columns as rows, 37 % of the rows remain free.
    const bool few_suffice = rows == cols && rows >= kManyRows;
    return free * (few_suffice ? 3 : 2) > rows && rows * cols >= kFewEntries;
  }

  // Returns false if a row has no finite cost at these prices.
  bool start_at_prices() {
    state_.clear_assignment();
    for (int32_t i = 0; i < state_.rows; ++i) {
      const int32_t col = auction_.cheapest(i);
      if (col >= 0) {
        assign_if_free(i, static_cast<double>(state_.row(i)[col]) - state_.v[col], col);
        continue;
      }
      const Minimum<double> cheapest = search_.nearest(i);  // computed in double
      if (cheapest.col < 0) return false;
      assign_if_free(i, cheapest.value, cheapest.col);
    }
    return true;
  }

  bool search_from_free_rows() {
    for (const int32_t i : state_.free_rows)
      if (state_.col_of_row[i] < 0 && !search_.augment(i)) return false;
    return true;
  }

  // A cost minus a price is rounded to the precision of the price. If the costs are so small beside
  // the prices that this affects the total, the result at these prices is not precise enough.
  bool are_prices_precise() {
    double total = 0;
    for (int32_t i = 0; i < state_.rows; ++i)
      total += std::abs(static_cast<double>(state_.row(i)[state_.col_of_row[i]]));
    const double lost = std::numeric_limits<double>::epsilon() * auction_.highest_price();
    return lost * state_.rows <= kMostLost * total;
  }

  void assign_if_free(int32_t row, double cost, int32_t col) {
    state_.u[row] = cost;
    if (state_.row_of_col[col] < 0)
      state_.assign(row, col);
    else
      state_.free_rows.push_back(row);
  }

  static constexpr int64_t kFewEntries = 5000, kManyRows = 200;
  static constexpr double kMostLost = 1e-12;  // as a fraction of the total

  Scan scan_;
  AssignmentState<Real> state_;
  Auction<Real, Scan> auction_;
  Search<Real, Scan> search_;
};

}  // namespace detr_fast
