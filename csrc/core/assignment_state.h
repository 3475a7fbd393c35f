// What the steps of the assignment solver share: costs, dual variables and the current assignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/scan.h"

namespace detr_fast {

template <class Real>
struct AssignmentState {
  // Called before a row is first read; it writes that row's costs.
  struct Fetch {
    void (*row)(void* context, int32_t row) = nullptr;
    void* context = nullptr;
  };

  const Real* cost = nullptr;
  int32_t rows = 0, cols = 0, stride = 0;
  Fetch fetch;
  std::vector<char> fetched;                    // [rows]
  AlignedVector<double> u, v;                   // [padded rows], [stride] dual variables
  std::vector<int32_t> col_of_row, row_of_col;  // [rows], [stride]; -1 = free
  std::vector<int32_t> free_rows;

  void start(const Real* costs, int64_t row_count, int64_t col_count, int64_t row_stride,
             Fetch rows_on_demand) {
    cost = costs;
    rows = static_cast<int32_t>(row_count);
    cols = static_cast<int32_t>(col_count);
    stride = static_cast<int32_t>(row_stride);
    fetch = rows_on_demand;
    if (fetch.row) fetched.assign(rows, 0);
    u.assign(padded(row_count), 0.0);
    reset_prices();
  }

  const Real* row(int32_t i) {
    if (fetch.row && !fetched[i]) {
      fetch.row(fetch.context, i);
      fetched[i] = 1;
    }
    return cost + static_cast<size_t>(i) * stride;
  }

  void assign(int32_t i, int32_t j) {
    row_of_col[j] = i;
    col_of_row[i] = j;
  }

  // Sets v to 0 and clears the assignment; u is kept.
  void reset_prices() {
    v.assign(stride, 0.0);
    clear_assignment();
  }

  // The dual variables are kept.
  void clear_assignment() {
    col_of_row.assign(rows, -1);
    row_of_col.assign(stride, -1);
    free_rows.clear();
  }
};

}  // namespace detr_fast
