// linear_sum_assignment: checks each matrix and finds its rows' minima in one pass. If these do not
// already solve it, converts it to the solver's form (rows <= cols, to be minimised, rows padded).
#include <algorithm>
#include <limits>
#include <vector>

#include "core/aligned.h"
#include "cpu/ops.h"
#include "cpu/problems.h"
#include "cpu/solver.h"

namespace detr_fast::cpu {
namespace {

template <class Real>
class Assigner {
 public:
  Status run(const Problem<Real>& problem, bool maximize) {
    const int64_t rows = problem.rows, cols = problem.cols;
    const bool transpose = rows > cols;
    const int64_t fewer = std::min(rows, cols), more = std::max(rows, cols);
    if (fewer == 0) return Status::kOk;
    if (padded(more) > std::numeric_limits<int32_t>::max()) return Status::kTooLarge;

    const LayoutKernels<Real>& layout = kernels_of<Real>().layout;
    const auto minima_of = transpose ? layout.col_minima : layout.row_minima;
    const Real sign = maximize ? Real(-1) : Real(1);
    minima_.resize(fewer);
    const Inspection inspection = minima_of(problem.cost, rows, cols, sign, minima_.data());
    if (inspection.invalid) return Status::kInvalidCost;

    if (!are_distinct(more)) {
      // A power of two: scaling rounds only entries that are 1e290 times smaller than the largest.
      const Real factor = inspection.huge ? sign * Real(0x1p-64) : sign;
      for (Minimum<Real>& minimum : minima_) minimum.value *= factor * sign;
      const int64_t stride = padded(more);
      grow(copy_, static_cast<size_t>(fewer) * stride);
      if (transpose) layout.transpose(problem.cost, rows, cols, factor, copy_.data(), stride);
      RowCopy source = {layout.copy_rows, problem.cost, cols, factor, copy_.data(), stride};
      const Status status = solver_.solve(copy_.data(), fewer, more, stride, minima_.data(),
                                          transpose ? Fetch{} : Fetch{&RowCopy::fetch, &source});
      if (status != Status::kOk) return status;
      for (int64_t i = 0; i < fewer; ++i) minima_[i].col = solver_.col_of_row()[i];
    }
    write(transpose, more, problem.row_index, problem.col_index);
    return Status::kOk;
  }

 private:
  using Fetch = typename Solver<Real>::Fetch;

  // Copies only the rows that the solver reads: for random costs, less than half of them.
  struct RowCopy {
    decltype(LayoutKernels<Real>::copy_rows) copy;
    const Real* cost;
    int64_t cols;
    Real factor;
    Real* out;
    int64_t stride;

    static void fetch(void* context, int32_t row) {
      const RowCopy& self = *static_cast<const RowCopy*>(context);
      self.copy(self.cost + row * self.cols, 1, self.cols, self.factor,
                self.out + row * self.stride, self.stride);
    }
  };

  // Whether all rows (or columns, if those are fewer) have their minima in different columns (or
  // rows), which solves the problem.
  bool are_distinct(int64_t more) {
    owner_.assign(more, -1);
    for (size_t i = 0; i < minima_.size(); ++i) {
      const int32_t col = minima_[i].col;
      if (col < 0 || owner_[col] >= 0) return false;
      owner_[col] = static_cast<int32_t>(i);
    }
    return true;
  }

  void write(bool transpose, int64_t more, int64_t* row_index, int64_t* col_index) {
    if (!transpose) {
      for (size_t i = 0; i < minima_.size(); ++i) {
        row_index[i] = static_cast<int64_t>(i);
        col_index[i] = minima_[i].col;
      }
      return;
    }
    owner_.assign(more, -1);
    for (size_t i = 0; i < minima_.size(); ++i) owner_[minima_[i].col] = static_cast<int32_t>(i);
    for (int64_t j = 0; j < more; ++j) {
      if (owner_[j] < 0) continue;
      *row_index++ = j;
      *col_index++ = owner_[j];
    }
  }

  std::vector<Minimum<Real>> minima_;  // of each row, or of each column if those are fewer
  std::vector<int32_t> owner_;
  AlignedVector<Real> copy_;
  Solver<Real> solver_;
};

}  // namespace

template <class Real>
Fault assign(const Problem<Real>* problems, int64_t count, bool maximize, int threads) {
  int64_t entries = 0;
  for (int64_t p = 0; p < count; ++p) entries += problems[p].rows * problems[p].cols;
  return solve_all(count, entries, threads, [&](int64_t p) -> Fault {
    thread_local Assigner<Real> assigner;
    const Status status = assigner.run(problems[p], maximize);
    return status == Status::kOk ? Fault{} : Fault{status, p};
  });
}

template Fault assign(const Problem<float>*, int64_t, bool, int);
template Fault assign(const Problem<double>*, int64_t, bool, int);

}  // namespace detr_fast::cpu
