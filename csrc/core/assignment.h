// The rectangular linear assignment problem by shortest augmenting paths: R. Jonker and A.
// Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment
// problems", Computing 38 (1987), in the rectangular form of D. F. Crouse, "On implementing 2D
// rectangular assignment algorithms", IEEE Trans. Aerospace and Electronic Systems 52 (2016).
//
// Rows are targets, columns are queries, rows <= cols. Invariants between two steps:
//   cost[i][j] - u[i] - v[j] >= 0, and = 0 where row i holds column j (complementary slackness);
//   v[j] <= 0, and v[j] = 0 where column j is free.
// Once every row holds a column they prove the assignment optimal. All arithmetic on dual variables
// is in double. Jonker and Volgenant's augmenting row reduction before the searches is left out:
// problems of untrained models took up to 14 % longer with it, random square ones 4 to 8 % less.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/aligned.h"
#include "core/column_choice.h"
#include "core/scan.h"
#include "core/status.h"

namespace detr_fast {

// Keeps its memory from one problem to the next. Scan: the loops over a row, as PlainScan.
template <class Real, class Scan = PlainScan<Real>>
class AssignmentSolver {
 public:
  struct Fetch {
    void (*row)(void* context, int32_t row) = nullptr;
    void* context = nullptr;
  };

  explicit AssignmentSolver(Scan scan = {}) : scan_(scan), choice_(scan) {}

  // Solves cost [rows, stride], whose columns from `cols` on are padding and hold infinity:
  // rows <= cols, no NaN, no -infinity; +infinity forbids a pair. `minima` [rows] are the rows'
  // minima where the caller knows them; `rows_on_demand`, where the caller has one, is called
  // before the first look at a row, whose costs it then writes. Afterwards col_of_row [rows] and
  // row_of_col [cols] (-1 = free) hold the answer.
  Status solve(const Real* cost, int64_t rows, int64_t cols, int64_t stride,
               const Minimum<Real>* minima = nullptr, Fetch rows_on_demand = {}) {
    if (stride > std::numeric_limits<int32_t>::max()) return Status::kTooLarge;
    whole_ = {cost, static_cast<int32_t>(rows), static_cast<int32_t>(cols),
              static_cast<int32_t>(stride)};
    fetch_ = rows_on_demand;
    if (fetch_.row) fetched_.assign(rows, 0);
    Status status = start(minima);
    if (status != Status::kOk || free_rows_.empty()) return status;
    // Where most rows want a column that another has taken, few columns are in demand.
    if (free_rows_.size() * 4 > static_cast<size_t>(rows) &&
        choice_.choose([this](int32_t i) { return row_costs(i); }, now_.rows, now_.cols,
                       now_.stride, u_.data())) {
      fetch_ = {};  // choosing took a look at every row
      keep_chosen_columns();
      const bool found = search() == Status::kOk;
      const bool optimal = found && is_optimal_for_all_columns();
      restore_columns();
      if (optimal) return Status::kOk;
      status = start(minima);
      if (status != Status::kOk) return status;
    }
    return search();
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

  struct Matrix {
    const Real* cost;
    int32_t rows, cols, stride;

    const Real* row(int32_t i) const { return cost + static_cast<size_t>(i) * stride; }
  };

  const Real* row_costs(int32_t row) {
    if (fetch_.row && !fetched_[row]) {
      fetch_.row(fetch_.context, row);
      fetched_[row] = 1;
    }
    return now_.row(row);
  }

  void assign(int32_t row, int32_t col) {
    row_of_col[col] = row;
    col_of_row[row] = col;
  }

  Status start(const Minimum<Real>* minima) {
    now_ = whole_;
    u_.resize(now_.rows);
    v_.assign(now_.stride, 0.0);
    col_of_row.assign(now_.rows, -1);
    row_of_col.assign(now_.stride, -1);
    return start_greedily(minima);
  }

  Status search() {
    for (const int32_t i : free_rows_) {
      const Status status = augment(i);
      if (status != Status::kOk) return status;
    }
    return Status::kOk;
  }

  // u = the row's minimum keeps all reduced costs >= 0; a row whose cheapest column is free takes
  // it. The problems of a trained model mostly end here.
  Status start_greedily(const Minimum<Real>* minima) {
    free_rows_.clear();
    for (int32_t i = 0; i < now_.rows; ++i) {
      Minimum<Real> cheapest;
      if (minima) cheapest = minima[i];
      // Only the scan finds a free one among columns of equal cost.
      if (!minima || (cheapest.col >= 0 && row_of_col[cheapest.col] >= 0))
        cheapest = scan_.row_minimum(row_costs(i), now_.stride, row_of_col.data());
      if (cheapest.col < 0) return Status::kInfeasible;
      u_[i] = cheapest.value;
      if (row_of_col[cheapest.col] < 0)
        assign(i, cheapest.col);
      else
        free_rows_.push_back(i);
    }
    return Status::kOk;
  }

  // Finds the shortest path in reduced costs from row `root` to a free column (Dijkstra), updates
  // the dual variables and flips the path.
  Status augment(int32_t root) {
    distance_.assign(now_.stride, kInfinity);
    visits_.clear();
    visits_.push_back({root, -1, 0.0, 0.0});
    double length = 0;
    int32_t col;
    for (;;) {
      const int32_t row = visits_.back().row;
      const Minimum<double> nearest = scan_.relax(row_costs(row), v_.data(), distance_.data(),
                                                  now_.stride, length - u_[row], row_of_col.data());
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

  // Goes on in a copy of the chosen columns, which hold all that rows hold already.
  void keep_chosen_columns() {
    const std::vector<int32_t>& kept = choice_.columns;
    const int32_t cols = static_cast<int32_t>(kept.size());
    const int32_t stride = (cols + kAlignment - 1) / kAlignment * kAlignment;
    const bool square = cols - now_.rows <= now_.rows / 4;
    const int32_t rows = square ? cols : now_.rows;
    constexpr Real kForbidden = std::numeric_limits<Real>::infinity();
    grow(kept_cost_, static_cast<size_t>(rows) * stride);
    for (int32_t i = 0; i < rows; ++i) {
      Real* const out = kept_cost_.data() + static_cast<size_t>(i) * stride;
      if (i < now_.rows) {
        const Real* const c = now_.row(i);
        for (int32_t k = 0; k < cols; ++k) out[k] = c[kept[k]];
      } else {
        std::fill(out, out + cols, Real(0));
      }
      std::fill(out + cols, out + stride, kForbidden);
    }
    now_ = {kept_cost_.data(), rows, cols, stride};
    if (square) {
      start_square();
    } else {
      for (int32_t k = 0; k < cols; ++k) {  // kept[k] >= k: read before it is overwritten
        row_of_col[k] = row_of_col[kept[k]];
        if (row_of_col[k] >= 0) col_of_row[row_of_col[k]] = k;
      }
    }
  }

  // Where hardly more columns are left than rows, rows of cost 0 stand for "nobody" and make the
  // problem square: then every column will be held, and no invariant binds v. It can start at the
  // columns' average costs, which removes what makes all rows want the same columns. Costs that are
  // far from the others, or infinite, count no more than `most`: they would leave nothing of the
  // differences between the others.
  void start_square() {
    average_.assign(now_.stride, Real(0));
    const Real most =
        std::min(64 * choice_.least_gap, std::numeric_limits<Real>::max() / (2 * whole_.rows));
    for (int32_t i = 0; i < whole_.rows; ++i)
      scan_.accumulate(now_.row(i), static_cast<Real>(u_[i]), most, now_.stride, average_.data());
    for (int32_t k = 0; k < now_.cols; ++k)
      v_[k] = static_cast<double>(average_[k]) / static_cast<double>(whole_.rows);
    u_.assign(now_.rows, 0.0);
    col_of_row.assign(now_.rows, -1);
    std::fill(row_of_col.begin(), row_of_col.end(), -1);
    free_rows_.resize(now_.rows);
    for (int32_t i = 0; i < now_.rows; ++i) free_rows_[i] = i;
  }

  // The invariants hold in all columns, if those left out have the v of a free column. In a square
  // problem it is the largest v.
  bool is_optimal_for_all_columns() {
    double free_v = 0;
    if (now_.rows == now_.cols) free_v = *std::max_element(v_.begin(), v_.begin() + now_.cols);
    return choice_.is_complete([this](int32_t i) { return whole_.row(i); }, whole_.rows,
                               whole_.stride, [&](int32_t i) { return u_[i] + free_v; });
  }

  void restore_columns() {
    col_of_row.resize(whole_.rows);
    row_of_col.assign(whole_.stride, -1);
    for (int32_t i = 0; i < whole_.rows; ++i)
      if (col_of_row[i] >= 0) assign(i, choice_.columns[col_of_row[i]]);
  }

  static constexpr int32_t kAlignment = 16;

  Scan scan_;
  ColumnChoice<Real, Scan> choice_;
  Matrix whole_{}, now_{};  // the problem, and what of it is at work
  Fetch fetch_;
  std::vector<char> fetched_;       // [rows]
  std::vector<double> u_;           // [rows] dual variables
  AlignedVector<double> v_;         // [stride] dual variables
  AlignedVector<double> distance_;  // [stride] of the shortest path so far; infinity if visited
  std::vector<Visit> visits_;       // rows in the order of the search
  std::vector<int32_t> free_rows_;
  AlignedVector<Real> kept_cost_, average_;
};

}  // namespace detr_fast
