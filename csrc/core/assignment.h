// The rectangular linear assignment problem by shortest augmenting paths: R. Jonker and A.
// Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment
// problems", Computing 38 (1987), in the rectangular form of D. F. Crouse, "On implementing 2D
// rectangular assignment algorithms", IEEE Trans. Aerospace and Electronic Systems 52 (2016).
//
// Rows are targets, columns are queries, rows <= cols. Invariants between two augmentations:
//   cost[i][j] - u[i] - v[j] >= 0, and = 0 where row i holds column j (complementary slackness);
//   v[j] <= 0, and v[j] = 0 where column j is free.
// Once every row holds a column they prove the assignment optimal. All arithmetic is in double.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/status.h"

namespace detr_fast {

// Smallest of x[0..n); infinity for n = 0.
template <class Real>
inline Real smallest(const Real* x, int32_t n) {
  constexpr int kLanes = 8;  // partial minima: a strict order of comparisons would forbid vectors
  Real lane[kLanes];
  for (int k = 0; k < kLanes; ++k) lane[k] = std::numeric_limits<Real>::infinity();
  const int32_t whole = n - n % kLanes;
  for (int32_t j = 0; j < whole; j += kLanes)
    for (int k = 0; k < kLanes; ++k) lane[k] = x[j + k] < lane[k] ? x[j + k] : lane[k];
  for (int32_t j = whole; j < n; ++j) lane[0] = x[j] < lane[0] ? x[j] : lane[0];
  for (int k = 1; k < kLanes; ++k) lane[0] = lane[k] < lane[0] ? lane[k] : lane[0];
  return lane[0];
}

template <class Real>
struct Minimum {
  Real value = std::numeric_limits<Real>::infinity();  // infinity: no finite value, no column
  int32_t col = -1;
};

// The smallest of x[0..n) and its column: a free one (owner[col] < 0) if several share the value.
// Ties are common in costs of integers, and a free column ends the search for a path.
template <class Real>
inline Minimum<Real> find_minimum(const Real* x, int32_t n, const int32_t* owner) {
  constexpr int32_t kBlock = 16;  // only a block with a new minimum is searched for its column
  Minimum<Real> found;
  bool is_free = false;
  for (int32_t start = 0; start < n; start += kBlock) {
    const int32_t end = std::min(n, start + kBlock);
    const Real value = smallest(x + start, end - start);
    if (value > found.value || value == std::numeric_limits<Real>::infinity() ||
        (value == found.value && is_free))
      continue;
    for (int32_t j = start; j < end; ++j) {
      if (x[j] != value) continue;
      const bool j_is_free = owner[j] < 0;
      if (value < found.value || (j_is_free && !is_free)) {
        found = {value, j};
        is_free = j_is_free;
      }
      if (is_free) break;
    }
  }
  return found;
}

// Keeps its memory from one problem to the next.
template <class Real>
class AssignmentSolver {
 public:
  // Solves cost [rows, cols]: contiguous, rows <= cols, no NaN, no -infinity; +infinity forbids a
  // pair. Afterwards col_of_row [rows] and row_of_col [cols] (-1 = free) hold the answer.
  Status solve(const Real* cost, int64_t rows, int64_t cols) {
    if (cols > std::numeric_limits<int32_t>::max()) return Status::kTooLarge;
    cost_ = cost;
    rows_ = static_cast<int32_t>(rows);
    cols_ = static_cast<int32_t>(cols);
    scans_ = 0;
    u_.resize(rows);
    v_.assign(cols, 0.0);
    distance_.resize(cols);
    col_of_row.assign(rows, -1);
    row_of_col.assign(cols, -1);

    Status status = start_greedily();
    bool cut = false;
    for (int32_t i = 0; i < rows_ && status == Status::kOk; ++i) {
      if (col_of_row[i] >= 0) continue;
      // Cutting columns costs about as much as this many scans, so that a problem that turns out
      // easy never pays for it, and a hard one at most twice.
      if (!cut && scans_ > 4 * rows_) {
        cut = true;
        cut_columns();
      }
      status = augment(i);
    }
    if (cols_ < cols) restore_columns(cols);
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

  const Real* row_costs(int32_t row) const { return cost_ + static_cast<size_t>(row) * cols_; }

  // u = the row's minimum keeps all reduced costs >= 0; a row whose cheapest column is free takes
  // it. The problems of a trained model mostly end here.
  Status start_greedily() {
    for (int32_t i = 0; i < rows_; ++i) {
      const Minimum<Real> cheapest = find_minimum(row_costs(i), cols_, row_of_col.data());
      if (cheapest.col < 0) return Status::kInfeasible;
      u_[i] = cheapest.value;
      if (row_of_col[cheapest.col] < 0) {
        row_of_col[cheapest.col] = i;
        col_of_row[i] = cheapest.col;
      }
    }
    return Status::kOk;
  }

  // Finds the shortest path in reduced costs from row `root` to a free column (Dijkstra), updates
  // the dual variables and flips the path.
  Status augment(int32_t root) {
    std::fill(distance_.begin(), distance_.begin() + cols_, kInfinity);
    visits_.clear();
    visits_.push_back({root, -1, 0.0, 0.0});
    double length = 0;
    int32_t col;
    for (;;) {
      relax(visits_.back(), length);
      const Minimum<double> nearest = find_minimum(distance_.data(), cols_, row_of_col.data());
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

  void relax(const Visit& visit, double length) {
    const Real* const c = row_costs(visit.row);
    const double* const __restrict v = v_.data();
    double* const __restrict distance = distance_.data();
    const double base = length - u_[visit.row];
    for (int32_t j = 0; j < cols_; ++j) {
      const double candidate = base + static_cast<double>(c[j]) - v[j];
      distance[j] = candidate < distance[j] ? candidate : distance[j];
    }
    ++scans_;
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
      row_of_col[col] = from.row;
      col_of_row[from.row] = col;
      if (best == 0) return;
      col = from.col;
      end = best;
    }
  }

  // Some optimal assignment gives each row one of its `rows` cheapest columns: if it did not, one
  // of those would be free, and no dearer. So only their union, and what rows hold already, is
  // kept.
  void cut_columns() {
    if (cols_ < 2 * rows_) return;
    std::vector<char>& keep = keep_;
    keep.assign(cols_, 0);
    for (int32_t i = 0; i < rows_; ++i) {
      const Real* const c = row_costs(i);
      scratch_.assign(c, c + cols_);
      std::nth_element(scratch_.begin(), scratch_.begin() + (rows_ - 1), scratch_.end());
      const Real dearest = scratch_[rows_ - 1];
      int32_t ties = rows_;
      for (int32_t j = 0; j < cols_; ++j) {
        const bool cheaper = c[j] < dearest;
        keep[j] |= cheaper;
        ties -= cheaper;
      }
      for (int32_t j = 0; ties > 0; ++j) {
        if (c[j] != dearest) continue;
        keep[j] = 1;
        --ties;
      }
    }
    kept_cols_.clear();
    for (int32_t j = 0; j < cols_; ++j)
      if (keep[j] || row_of_col[j] >= 0) kept_cols_.push_back(j);

    const int32_t kept = static_cast<int32_t>(kept_cols_.size());
    if (kept == cols_) return;
    kept_cost_.resize(static_cast<size_t>(rows_) * kept);
    for (int32_t i = 0; i < rows_; ++i) {
      const Real* const c = row_costs(i);
      for (int32_t k = 0; k < kept; ++k)
        kept_cost_[static_cast<size_t>(i) * kept + k] = c[kept_cols_[k]];
    }
    for (int32_t k = 0; k < kept; ++k) {  // kept_cols_[k] >= k: nothing is overwritten before use
      const int32_t j = kept_cols_[k];
      v_[k] = v_[j];
      row_of_col[k] = row_of_col[j];
      if (row_of_col[k] >= 0) col_of_row[row_of_col[k]] = k;
    }
    cost_ = kept_cost_.data();
    cols_ = kept;
  }

  void restore_columns(int64_t cols) {
    row_of_col.assign(cols, -1);
    for (int32_t i = 0; i < rows_; ++i) {
      if (col_of_row[i] < 0) continue;
      col_of_row[i] = kept_cols_[col_of_row[i]];
      row_of_col[col_of_row[i]] = i;
    }
  }

  const Real* cost_ = nullptr;
  int32_t rows_ = 0, cols_ = 0;
  int64_t scans_ = 0;             // rows relaxed in this problem
  std::vector<double> u_, v_;     // [rows], [cols] dual variables
  std::vector<double> distance_;  // [cols] length of the shortest path so far; infinity if visited
  std::vector<Visit> visits_;     // rows in the order of the search
  std::vector<Real> scratch_, kept_cost_;
  std::vector<char> keep_;
  std::vector<int32_t> kept_cols_;
};

}  // namespace detr_fast
