// The rectangular linear assignment problem by shortest augmenting paths: R. Jonker and A.
// Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment
// problems", Computing 38 (1987), in the rectangular form of D. F. Crouse, "On implementing 2D
// rectangular assignment algorithms", IEEE Trans. Aerospace and Electronic Systems 52 (2016).
//
// Rows are targets, columns are queries, rows <= cols. Invariants between two steps:
//   cost[i][j] - u[i] - v[j] >= 0, and = 0 where row i holds column j (complementary slackness);
//   v[j] <= 0, and v[j] = 0 where column j is free.
// Once every row holds a column they prove the assignment optimal. All arithmetic on dual variables
// is in double.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/aligned.h"
#include "core/scan.h"
#include "core/status.h"

namespace detr_fast {

// Keeps its memory from one problem to the next. Scan: the loops over a row, as PlainScan.
template <class Real, class Scan = PlainScan<Real>>
class AssignmentSolver {
 public:
  explicit AssignmentSolver(Scan scan = {}) : scan_(scan) {}

  // Solves cost [rows, stride], whose columns from `cols` on are padding and hold infinity:
  // rows <= cols, no NaN, no -infinity; +infinity forbids a pair. `minima` [rows] are the rows'
  // minima where the caller knows them. Afterwards col_of_row [rows] and row_of_col [cols] (-1 =
  // free) hold the answer.
  Status solve(const Real* cost, int64_t rows, int64_t cols, int64_t stride,
               const Minimum<Real>* minima = nullptr) {
    if (stride > std::numeric_limits<int32_t>::max()) return Status::kTooLarge;
    cost_ = cost;
    rows_ = static_cast<int32_t>(rows);
    cols_ = static_cast<int32_t>(cols);
    stride_ = static_cast<int32_t>(stride);
    kept_cols_.clear();
    u_.resize(rows);
    v_.assign(stride, 0.0);
    col_of_row.assign(rows, -1);
    row_of_col.assign(stride, -1);

    Status status = start_greedily(minima);
    if (status == Status::kOk && !free_rows_.empty()) {
      // Where most rows want a column that another has taken, few columns are in demand.
      if (free_rows_.size() * 4 > static_cast<size_t>(rows_)) cut_columns();
      reduce_rows();
      for (const int32_t i : free_rows_) {
        status = augment(i);
        if (status != Status::kOk) break;
      }
      if (!kept_cols_.empty()) restore_columns(rows, cols);
    }
    return status;
  }

  std::vector<int32_t> col_of_row, row_of_col;

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  struct Visit {  // a row in the search tree
    int32_t row;
    int32_t col;      // the column it holds, through which it was reached; -1 for the root
    double distance;  // of that column
    double v;         // of that column, before the search
  };

  const Real* row_costs(int32_t row) const { return cost_ + static_cast<size_t>(row) * stride_; }

  void assign(int32_t row, int32_t col) {
    row_of_col[col] = row;
    col_of_row[row] = col;
  }

  // u = the row's minimum keeps all reduced costs >= 0; a row whose cheapest column is free takes
  // it. The problems of a trained model mostly end here.
  Status start_greedily(const Minimum<Real>* minima) {
    free_rows_.clear();
    for (int32_t i = 0; i < rows_; ++i) {
      Minimum<Real> cheapest;
      if (minima) cheapest = minima[i];
      // Only the scan finds a free one among columns of equal cost.
      if (!minima || (cheapest.col >= 0 && row_of_col[cheapest.col] >= 0))
        cheapest = scan_.row_minimum(row_costs(i), stride_, row_of_col.data());
      if (cheapest.col < 0) return Status::kInfeasible;
      u_[i] = cheapest.value;
      if (row_of_col[cheapest.col] < 0)
        assign(i, cheapest.col);
      else
        free_rows_.push_back(i);
    }
    return Status::kOk;
  }

  // Augmenting row reduction, an auction: a free row takes its cheapest column at the price at
  // which its second cheapest would do as well; the row that held it is free then and bids next.
  // What is left in free_rows_ needs a search.
  void reduce_rows() {
    waiting_.swap(free_rows_);
    free_rows_.clear();
    int64_t budget = kBidsPerRow * static_cast<int64_t>(rows_);
    while (!waiting_.empty()) {
      const int32_t i = waiting_.back();
      waiting_.pop_back();
      const int32_t* const owner = row_of_col.data();
      const TwoMinima cheapest = scan_.two_smallest(row_costs(i), v_.data(), stride_, owner);
      const int32_t col = cheapest.col;
      // No price to offer: a tie, or no other column at all. The search will find out.
      const bool stuck = col < 0 || (owner[col] >= 0 && !(cheapest.first < cheapest.second)) ||
                         cheapest.second == kInfinity;
      if (stuck || --budget < 0) {
        free_rows_.push_back(i);
        continue;
      }
      const int32_t previous = owner[col];
      if (previous >= 0) {
        v_[col] -= cheapest.second - cheapest.first;
        u_[i] = cheapest.second;
        col_of_row[previous] = -1;
        waiting_.push_back(previous);
      } else {
        u_[i] = cheapest.first;
      }
      assign(i, col);
    }
  }

  // Finds the shortest path in reduced costs from row `root` to a free column (Dijkstra), updates
  // the dual variables and flips the path.
  Status augment(int32_t root) {
    distance_.assign(stride_, kInfinity);
    visits_.clear();
    visits_.push_back({root, -1, 0.0, 0.0});
    double length = 0;
    int32_t col;
    for (;;) {
      const int32_t row = visits_.back().row;
      const Minimum<double> nearest = scan_.relax(row_costs(row), v_.data(), distance_.data(),
                                                  stride_, length - u_[row], row_of_col.data());
      if (nearest.col < 0) return Status::kInfeasible;
      length = nearest.value;
      col = nearest.col;
      if (row_of_col[col] < 0) break;
      visits_.push_back({row_of_col[col], col, length, v_[col]});
      // A visited column must not be reached again: v = -infinity makes every candidate infinite,
      // which saves the inner loop a mask.
      v_[col] = -kInfinity;
      distance_[col] = kInfinity;
    }
    flip_path(col);
    for (const Visit& visit : visits_) {
      u_[visit.row] += length - visit.distance;
      if (visit.col >= 0) v_[visit.col] = visit.v - (length - visit.distance);
    }
    return Status::kOk;
  }

  // Hands `col` to the row from which it was reached, that row's column to the row before it, and
  // so on to the root. relax() does not store where a distance came from, which would slow it down;
  // the few columns on the path look for it among the rows visited before them.
  void flip_path(int32_t col) {
    size_t end = visits_.size();
    for (;;) {
      const double v = end < visits_.size() ? visits_[end].v : v_[col];
      size_t best = 0;
      double shortest = kInfinity;
      for (size_t k = 0; k < end; ++k) {
        const Visit& visit = visits_[k];
        const double candidate =
            (visit.distance - u_[visit.row]) + static_cast<double>(row_costs(visit.row)[col]) - v;
        if (candidate < shortest) {
          shortest = candidate;
          best = k;
        }
      }
      const Visit& from = visits_[best];
      assign(from.row, col);
      if (best == 0) return;
      col = from.col;
      end = best;
    }
  }

  // Some optimal assignment gives each row one of its `rows` cheapest columns: if it did not, one
  // of those would be free, and no dearer. So a column that no row has among its `rows` cheapest
  // can go, unless a row holds it already. Instead of sorting each row, an upper bound of its
  // `rows`-th cheapest is taken: the dearest of the `rows` columns that are cheapest on average.
  void cut_columns() {
    if (cols_ < rows_ + rows_ / 4 || cols_ < 32) return;
    keep_.assign(stride_, Real(0));
    for (int32_t i = 0; i < rows_; ++i) scan_.accumulate(row_costs(i), stride_, keep_.data());
    Real nothing = 0;  // NaN if a sum is not finite: forbidden pairs, or an overflow
    for (int32_t j = 0; j < cols_; ++j) nothing += keep_[j] * 0;
    if (nothing != 0) return;
    sums_ = keep_;
    std::nth_element(keep_.begin(), keep_.begin() + (rows_ - 1), keep_.begin() + cols_);
    const Real limit = keep_[rows_ - 1];
    keep_.assign(stride_, std::numeric_limits<Real>::infinity());
    for (int32_t i = 0; i < rows_; ++i) {
      const Real dearest = scan_.largest_where(row_costs(i), sums_.data(), limit, stride_);
      scan_.mark_up_to(row_costs(i), dearest, stride_, keep_.data());
    }
    for (int32_t j = 0; j < cols_; ++j)
      if (keep_[j] <= 0 || row_of_col[j] >= 0) kept_cols_.push_back(j);

    const int32_t kept = static_cast<int32_t>(kept_cols_.size());
    const int32_t stride = (kept + kAlignment - 1) / kAlignment * kAlignment;
    if (stride >= stride_ - stride_ / 8) return kept_cols_.clear();
    const bool square = kept - rows_ <= rows_ / 4;
    const int32_t rows = square ? kept : rows_;
    constexpr Real kForbidden = std::numeric_limits<Real>::infinity();
    grow(kept_cost_, static_cast<size_t>(rows) * stride);
    for (int32_t i = 0; i < rows; ++i) {
      Real* const out = kept_cost_.data() + static_cast<size_t>(i) * stride;
      const Real* const c = row_costs(i);
      if (i < rows_)
        for (int32_t k = 0; k < kept; ++k) out[k] = c[kept_cols_[k]];
      else
        std::fill(out, out + kept, Real(0));
      std::fill(out + kept, out + stride, kForbidden);
    }
    if (square) {
      start_square(rows, kept);
    } else {
      for (int32_t k = 0; k < kept; ++k) {  // kept_cols_[k] >= k: read before it is overwritten
        row_of_col[k] = row_of_col[kept_cols_[k]];
        if (row_of_col[k] >= 0) col_of_row[row_of_col[k]] = k;
      }
    }
    cost_ = kept_cost_.data();
    rows_ = rows;
    cols_ = kept;
    stride_ = stride;
  }

  // Where hardly more columns are left than rows, rows of cost 0 stand for "nobody" and make the
  // problem square: then every column will be held, and no invariant binds v. It can start at the
  // columns' average costs, which removes what makes all rows want the same columns.
  void start_square(int32_t rows, int32_t kept) {
    for (int32_t k = 0; k < kept; ++k)
      v_[k] = static_cast<double>(sums_[kept_cols_[k]]) / static_cast<double>(rows_);
    u_.assign(rows, 0.0);
    col_of_row.assign(rows, -1);
    std::fill(row_of_col.begin(), row_of_col.end(), -1);
    free_rows_.resize(rows);
    for (int32_t i = 0; i < rows; ++i) free_rows_[i] = i;
  }

  void restore_columns(int64_t rows, int64_t cols) {
    col_of_row.resize(rows);
    row_of_col.assign(cols, -1);
    for (int32_t i = 0; i < static_cast<int32_t>(rows); ++i)
      if (col_of_row[i] >= 0) assign(i, kept_cols_[col_of_row[i]]);
  }

  static constexpr int32_t kAlignment = 16;
  // With 4, problems of untrained models take up to 13 % longer, with 16 up to twice as long; with
  // 1 some take 9 % longer.
  static constexpr int64_t kBidsPerRow = 2;

  Scan scan_;
  const Real* cost_ = nullptr;
  int32_t rows_ = 0, cols_ = 0, stride_ = 0;
  std::vector<double> u_;           // [rows] dual variables
  AlignedVector<double> v_;         // [stride] dual variables
  AlignedVector<double> distance_;  // [stride] of the shortest path so far; infinity if visited
  std::vector<Visit> visits_;       // rows in the order of the search
  std::vector<int32_t> free_rows_, waiting_;
  AlignedVector<Real> sums_, keep_, kept_cost_;
  std::vector<int32_t> kept_cols_;
};

}  // namespace detr_fast
