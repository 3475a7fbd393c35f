// The assignment problem solved by a team of threads: the GPU's form of core/assignment.h, with the
// same rows (targets), columns (queries), dual variables and invariants, in three steps:
//   1. greedy start: every row its cheapest column, where rows do not compete for it;
//   2. columns that no row can need are cut away;
//   3. shortest augmenting paths for the rows left over.
// Steps 1 and 2 read all costs, and all warps of a block share the rows. Step 3 is a chain in which
// each link waits for the one before: what counts is how long one pass over a row takes, including
// finding its minimum among all threads. One warp does that without a barrier and is chosen up to
// kWarpColumns columns. Costs are copied to the block's own memory before the chain, if they fit.
//
// The two forms are two sources because the CPU's is made of vector instructions and grows its
// memory as it needs, while here every step is one of a team's collective operations and memory is
// handed in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/status.h"
#include "core/team.h"

namespace detr_fast {

// What solving one problem needs, shared by the threads of a block.
struct SolverMemory {
  double *u, *v;                     // [rows], [cols] dual variables
  double* distance;                  // [cols] of the shortest path so far; infinity if visited
  double* visit_distance;            // [rows] of the visited column, in the order of the search
  double* visit_v;                   // [rows] of the visited column, before the search
  int32_t *visit_row, *visit_col;    // [rows] that column's row, and the column; -1 for the root
  int32_t *row_of_col, *col_of_row;  // the assignment; -1 = none
  int32_t* from;                     // [cols] the row from which a column was reached
  int32_t* free_rows;                // [rows] rows without a column, for the search
  int32_t* kept;                     // [cols] the columns that were not cut away
  int32_t* shared;                   // [4] see TeamSolver

  static DETR_FAST_KERNEL_PART size_t bytes(int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * (3 * 8 + 4 * 4) + cols * (2 * 8 + 3 * 4) + 16 + 8);
  }

  // `memory` is aligned to 8 bytes.
  DETR_FAST_KERNEL_PART SolverMemory(void* memory, int64_t rows, int64_t cols) {
    u = static_cast<double*>(memory);
    v = u + rows;
    distance = v + cols;
    visit_distance = distance + cols;
    visit_v = visit_distance + rows;
    visit_row = reinterpret_cast<int32_t*>(visit_v + rows);
    visit_col = visit_row + rows;
    row_of_col = visit_col + rows;
    col_of_row = row_of_col + cols;
    from = col_of_row + rows;
    free_rows = from + cols;
    kept = free_rows + rows;
    shared = kept + cols;
  }
};

// Every method is called by all threads of the block, unless it takes another team.
template <class Block, class Real>
class TeamSolver {
 public:
  // Up to here the chain of step 3 is one warp's. An estimate: 12 cycles for each further
  // column of a thread, against 150 for a barrier and the exchange between warps.
  static constexpr int32_t kWarpColumns = 320;

  // `room`: memory for `room_size` costs, near the threads; may be none.
  DETR_FAST_KERNEL_PART TeamSolver(Block& block, const SolverMemory& memory, Real* room,
                                   int64_t room_size, int32_t warp_columns = kWarpColumns)
      : block_(block),
        m_(memory),
        room_(room),
        room_size_(room_size),
        warp_columns_(warp_columns) {}

  // Solves cost [rows, stride], of which `cols` columns count: rows <= cols. +infinity forbids a
  // pair. Afterwards, and if the result is kOk, col_of_row(i) is the column of row i.
  DETR_FAST_KERNEL_PART Status solve(const Real* cost, int32_t rows, int32_t cols, int32_t stride) {
    cost_ = cost;
    rows_ = rows;
    cols_ = cols;
    stride_ = stride;
    is_cut_ = false;
    steps_ = 0;
    start_greedily();
    int32_t free = m_.shared[kFree];
    Status status = static_cast<Status>(m_.shared[kStatus]);
    if (status != Status::kOk || free == 0) return status;
    // Where most rows want a column that another has taken, few columns are in demand.
    if (free * 4 > rows_) cut_columns();
    if (!is_cut_) move_costs();
    block_.sync();
    if (cols_ > warp_columns_) {
      search(block_, free);
    } else if (block_.warp_index() == 0) {
      const auto warp = block_.warp();
      search(warp, free);
    }
    block_.sync();
    return static_cast<Status>(m_.shared[kStatus]);
  }

  // Links of the chain of step 3: rows visited by searches. Known to the threads that searched, the
  // first warp's among them.
  DETR_FAST_KERNEL_PART int32_t steps() const { return steps_; }

  DETR_FAST_KERNEL_PART int32_t col_of_row(int32_t row) const {
    const int32_t col = m_.col_of_row[row];
    return is_cut_ ? m_.kept[col] : col;
  }

 private:
  enum Shared { kStatus, kFree, kKept };

  static DETR_FAST_KERNEL_PART double infinity() { return number_of(uint64_t(0xfff0000000000000)); }

  DETR_FAST_KERNEL_PART const Real* row_costs(int32_t row) const {
    return cost_ + static_cast<size_t>(row) * stride_;
  }

  DETR_FAST_KERNEL_PART bool is_held(int32_t col) const { return m_.row_of_col[col] >= 0; }

  // u = the row's minimum keeps all reduced costs >= 0. Of the rows with the same cheapest column
  // the first takes it.
  DETR_FAST_KERNEL_PART void start_greedily() {
    constexpr int32_t kNobody = 0x7fffffff;
    for (int32_t j = block_.rank(); j < cols_; j += block_.size()) {
      m_.row_of_col[j] = kNobody;
      m_.v[j] = 0;
    }
    if (block_.rank() == 0) m_.shared[kStatus] = static_cast<int32_t>(Status::kOk);
    block_.sync();

    const auto warp = block_.warp();
    for (int32_t i = block_.warp_index(); i < rows_; i += block_.warps()) {
      const Real* const c = row_costs(i);
      OrderedKey<Real> least;
      bool invalid = false;
      for (int32_t j = warp.rank(); j < cols_; j += kWarpSize) {
        invalid |= !(c[j] > -infinity());
        const OrderedKey<Real> key = {ordered(c[j]), static_cast<uint32_t>(j)};
        if (key < least) least = key;
      }
      invalid = warp.ballot(invalid) != 0;
      least = warp.min(least);
      if (warp.rank() != 0) continue;
      const double cheapest = static_cast<double>(number_of(least.value));
      if (invalid) {
        block_.lower(&m_.shared[kStatus], kInvalidFirst);
      } else if (!(cheapest < infinity())) {
        block_.lower(&m_.shared[kStatus], kInfeasibleNext);
      } else {
        m_.u[i] = cheapest;
        m_.col_of_row[i] = static_cast<int32_t>(least.index);
        block_.lower(&m_.row_of_col[least.index], i);
      }
    }
    block_.sync();
    if (m_.shared[kStatus] < 0) {
      const int32_t code = m_.shared[kStatus];
      block_.sync();
      if (block_.rank() == 0) {
        m_.shared[kStatus] = static_cast<int32_t>(code == kInvalidFirst ? Status::kInvalidCost
                                                                        : Status::kInfeasible);
        m_.shared[kFree] = rows_;
      }
      block_.sync();
      return;
    }
    for (int32_t i = block_.rank(); i < rows_; i += block_.size())
      if (m_.row_of_col[m_.col_of_row[i]] != i) m_.col_of_row[i] = -1;
    block_.sync();
    for (int32_t j = block_.rank(); j < cols_; j += block_.size())
      if (m_.row_of_col[j] == kNobody) m_.row_of_col[j] = -1;
    if (block_.warp_index() == 0) {
      const int32_t free = compact(
          warp, rows_, [&](int32_t i) { return m_.col_of_row[i] < 0; },
          [&](int32_t k, int32_t i) { m_.free_rows[k] = i; });
      if (warp.rank() == 0) m_.shared[kFree] = free;
    }
    block_.sync();
  }

  // Some optimal assignment gives each row one of its `rows` cheapest columns: if it did not, one
  // of those would be free, and no dearer. An upper bound of each row's `rows`-th cheapest cost is
  // the dearest among the `rows` columns that are cheapest on average; a column above all rows'
  // bounds, that no row holds, can go.
  DETR_FAST_KERNEL_PART void cut_columns() {
    if (room_size_ < static_cast<int64_t>(rows_) * rows_) return;  // what is left would not fit
    if (cols_ < rows_ + rows_ / 4 || cols_ < kWarpSize) return;
    uint32_t* const sum_key = reinterpret_cast<uint32_t*>(m_.from);
    uint32_t unbounded = 0;
    for (int32_t j = block_.rank(); j < cols_; j += block_.size()) {
      double sum = 0;
      for (int32_t i = 0; i < rows_; ++i) sum += static_cast<double>(row_costs(i)[j]);
      const float rounded = static_cast<float>(sum);
      unbounded |= !(rounded - rounded == 0);  // forbidden pairs, or an overflow
      sum_key[j] = ordered(rounded);
    }
    if (block_.sum(unbounded) != 0) return;

    // The `rows`-th smallest key, found bit by bit; the lowest bits do not matter, as a larger
    // bound only keeps more.
    constexpr int kIgnoredBits = 8;
    uint32_t limit = 0;
    for (int bit = 31; bit >= kIgnoredBits; --bit) {
      const uint32_t guess = limit | ((uint32_t(1) << bit) - 1);
      uint32_t below = 0;
      for (int32_t j = block_.rank(); j < cols_; j += block_.size()) below += sum_key[j] <= guess;
      if (block_.sum(below) < static_cast<uint32_t>(rows_)) limit |= uint32_t(1) << bit;
    }
    limit |= (uint32_t(1) << kIgnoredBits) - 1;
    block_.sync();

    double* const bound = m_.visit_distance;
    const auto warp = block_.warp();
    for (int32_t i = block_.warp_index(); i < rows_; i += block_.warps()) {
      OrderedKey<Real> dearest;  // of the complement: the largest
      for (int32_t j = warp.rank(); j < cols_; j += kWarpSize) {
        const OrderedKey<Real> key = {
            static_cast<decltype(dearest.value)>(~ordered(row_costs(i)[j])), 0};
        if (sum_key[j] <= limit && key < dearest) dearest = key;
      }
      dearest = warp.min(dearest);
      if (warp.rank() == 0)
        bound[i] =
            static_cast<double>(number_of(static_cast<decltype(dearest.value)>(~dearest.value)));
    }
    block_.sync();

    int32_t* const keep = m_.kept;
    for (int32_t j = block_.rank(); j < cols_; j += block_.size()) {
      bool wanted = is_held(j);
      for (int32_t i = 0; i < rows_ && !wanted; ++i)
        wanted = static_cast<double>(row_costs(i)[j]) <= bound[i];
      keep[j] = wanted;
    }
    block_.sync();
    int32_t* const list = m_.from;
    if (block_.warp_index() == 0) {
      const int32_t kept = compact(
          warp, cols_, [&](int32_t j) { return keep[j] != 0; },
          [&](int32_t k, int32_t j) { list[k] = j; });
      if (warp.rank() == 0) m_.shared[kKept] = kept;
    }
    block_.sync();
    const int32_t kept = m_.shared[kKept];
    if (kept > cols_ - cols_ / 8 || static_cast<int64_t>(kept) * rows_ > room_size_) return;

    // Numbers of the kept columns only, from here on.
    for (int32_t i = block_.warp_index(); i < rows_; i += block_.warps())
      for (int32_t k = warp.rank(); k < kept; k += kWarpSize)
        room_[static_cast<size_t>(i) * kept + k] = row_costs(i)[list[k]];
    int32_t* const owner = reinterpret_cast<int32_t*>(m_.distance);
    for (int32_t k = block_.rank(); k < kept; k += block_.size()) owner[k] = m_.row_of_col[list[k]];
    block_.sync();
    for (int32_t k = block_.rank(); k < kept; k += block_.size()) {
      m_.kept[k] = list[k];
      m_.row_of_col[k] = owner[k];
      if (owner[k] >= 0) m_.col_of_row[owner[k]] = k;
    }
    cost_ = room_;
    cols_ = stride_ = kept;
    is_cut_ = true;
  }

  DETR_FAST_KERNEL_PART void move_costs() {
    if (static_cast<int64_t>(rows_) * cols_ > room_size_ || cost_ == room_) return;
    const auto warp = block_.warp();
    for (int32_t i = block_.warp_index(); i < rows_; i += block_.warps())
      for (int32_t j = warp.rank(); j < cols_; j += kWarpSize)
        room_[static_cast<size_t>(i) * cols_ + j] = row_costs(i)[j];
    cost_ = room_;
    stride_ = cols_;
  }

  // Step 3, by one team. A column j is looked after by the thread of rank j % size: it alone reads
  // and writes the column's v, distance and from.
  template <class Team>
  DETR_FAST_KERNEL_PART void search(Team& team, int32_t free) {
    for (int32_t j = team.rank(); j < cols_; j += team.size()) m_.distance[j] = infinity();
    for (int32_t k = 0; k < free; ++k) {
      if (augment(team, m_.free_rows[k])) continue;
      if (team.rank() == 0) m_.shared[kStatus] = static_cast<int32_t>(Status::kInfeasible);
      return;
    }
  }

  // The shortest path in reduced costs from row `root` to a free column; false if there is none.
  template <class Team>
  DETR_FAST_KERNEL_PART bool augment(Team& team, int32_t root) {
    int32_t row = root, col = -1, visits = 0;
    double length = 0;
    for (;;) {
      if (team.rank() == 0) {
        m_.visit_row[visits] = row;
        m_.visit_col[visits] = col;
        m_.visit_distance[visits] = length;
      }
      if (col >= 0 && team.rank() == col % team.size()) {
        // A visited column must not be reached again: v = -infinity makes every candidate infinite.
        m_.visit_v[visits] = m_.v[col];
        m_.v[col] = -infinity();
        m_.distance[col] = infinity();
      }
      ++visits;
      ++steps_;

      const Real* const c = row_costs(row);
      const double base = length - m_.u[row];
      double least = infinity();
      int32_t nearest = -1;
      for (int32_t j = team.rank(); j < cols_; j += team.size()) {
        const double candidate = base + static_cast<double>(c[j]) - m_.v[j];
        double distance = m_.distance[j];
        if (candidate < distance) {
          m_.distance[j] = distance = candidate;
          m_.from[j] = row;
        }
        if (distance < least ||
            (distance == least && nearest >= 0 && is_held(nearest) && !is_held(j))) {
          least = distance;
          nearest = j;
        }
      }
      const Key<uint64_t> found = team.min(key_of(least, nearest));
      length = number_of(found.value);
      if (!(length < infinity())) return false;
      col = static_cast<int32_t>(found.index & kColumn);
      row = m_.row_of_col[col];
      if (row < 0) break;
    }
    team.sync();
    for (int32_t k = team.rank(); k < visits; k += team.size()) {
      const double nearer = length - m_.visit_distance[k];
      m_.u[m_.visit_row[k]] += nearer;
      if (m_.visit_col[k] >= 0) m_.v[m_.visit_col[k]] = m_.visit_v[k] - nearer;
    }
    for (int32_t j = team.rank(); j < cols_; j += team.size()) m_.distance[j] = infinity();
    if (team.rank() == 0) flip_path(col, root);
    team.sync();
    return true;
  }

  // Hands `col` to the row from which it was reached, that row's column to the row before it, and
  // so on to the root.
  DETR_FAST_KERNEL_PART void flip_path(int32_t col, int32_t root) {
    for (;;) {
      const int32_t row = m_.from[col], next = m_.col_of_row[row];
      m_.row_of_col[col] = row;
      m_.col_of_row[row] = col;
      if (row == root) return;
      col = next;
    }
  }

  // Ties are common in costs of integers, and a free column ends a search: it comes first.
  static constexpr uint32_t kHeld = 0x80000000u, kColumn = 0x7fffffffu;

  DETR_FAST_KERNEL_PART uint32_t index_of(int32_t col) const {
    return static_cast<uint32_t>(col) | (is_held(col) ? kHeld : 0u);
  }

  DETR_FAST_KERNEL_PART Key<uint64_t> key_of(double value, int32_t col) const {
    if (col < 0) return {ordered(infinity()), kColumn};
    return {ordered(value), index_of(col)};
  }

  static constexpr int32_t kInvalidFirst = -2, kInfeasibleNext = -1;  // below every Status

  Block& block_;
  const SolverMemory& m_;
  Real* const room_;
  const int64_t room_size_;
  const int32_t warp_columns_;
  const Real* cost_ = nullptr;
  int32_t rows_ = 0, cols_ = 0, stride_ = 0, steps_ = 0;
  bool is_cut_ = false;
};

}  // namespace detr_fast
