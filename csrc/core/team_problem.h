// An assignment problem as shared by a team of threads: its costs, and the memory to solve it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/host_device.h"
#include "core/number.h"
#include "core/team.h"

namespace detr_fast {

constexpr int32_t kNobody = 0x7fffffff;  // no row or bidder has claimed the column yet

// The solver's memory, provided by the caller and shared by the three steps of
// core/team_assignment.h.
struct SolverMemory {
  double *u, *v;                     // [rows], [cols] dual variables
  double* distance;                  // [cols] of the shortest path so far; infinity if visited
  double* visit_distance;            // [rows + 1] distance of each visit of a search, in its order
  double* visit_dual;                // [rows + 1] the dual variable before the search
  int32_t *visit_row, *visit_col;    // [rows + 1] the visit's row and column; -1: none (the root)
  int32_t *row_of_col, *col_of_row;  // the assignment; -1 = none
  int32_t* from;                     // [cols] from where a column (or a row) was reached
  int32_t* free_rows;                // [rows] rows without a column
  int32_t* shared;                   // [2] see Shared

  enum Shared { kStatus, kFree };  // the solver's status; the number of free_rows

  static DETR_FAST_KERNEL_PART size_t bytes(int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * (3 * 8 + 4 * 4) + cols * (2 * 8 + 2 * 4) + 2 * 8 + 4 * 4);
  }

  DETR_FAST_KERNEL_PART bool is_held(int32_t col) const { return row_of_col[col] >= 0; }

  // Whether `col` comes before `other` (-1 = none) if both cost the same: a free column comes
  // before one that a row holds. Integer costs often tie.
  DETR_FAST_KERNEL_PART bool comes_first(int32_t col, int32_t other) const {
    return other >= 0 && is_held(other) && !is_held(col);
  }

  // The least key is that of the column with the least value; ties are decided by comes_first(),
  // then by the column's number.
  DETR_FAST_KERNEL_PART Key<uint64_t> key_of(double value, int32_t col) const {
    return {ordered(value), static_cast<uint32_t>(col) | (is_held(col) ? kHeld : 0u)};
  }
  static DETR_FAST_KERNEL_PART int32_t col_of(const Key<uint64_t>& key) {
    return static_cast<int32_t>(key.index & ~kHeld);
  }

  // `memory` must be aligned to 8 bytes.
  DETR_FAST_KERNEL_PART SolverMemory(void* memory, int64_t rows, int64_t cols) {
    u = static_cast<double*>(memory);
    v = u + rows;
    distance = v + cols;
    visit_distance = distance + cols;
    visit_dual = visit_distance + rows + 1;
    visit_row = reinterpret_cast<int32_t*>(visit_dual + rows + 1);
    visit_col = visit_row + rows + 1;
    row_of_col = visit_col + rows + 1;
    col_of_row = row_of_col + cols;
    from = col_of_row + rows;
    free_rows = from + cols;
    shared = free_rows + rows;
  }

 private:
  static constexpr uint32_t kHeld = 0x80000000u;
};

// Costs [rows, stride], of which `cols` columns count: rows <= cols. +infinity forbids a pair.
template <class Real>
struct TeamProblem {
  const Real* cost;
  int32_t rows, cols, stride;

  DETR_FAST_KERNEL_PART const Real* row(int32_t i) const {
    return cost + static_cast<size_t>(i) * stride;
  }

  static DETR_FAST_KERNEL_PART double infinity() { return std::numeric_limits<double>::infinity(); }
};

}  // namespace detr_fast
