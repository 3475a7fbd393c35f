// linear_sum_assignment: checks each matrix, brings it into the solver's form (rows <= cols, to be
// minimised, rows padded), solves it and writes the pairs.
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/ops.h"
#include "cpu/solver.h"

namespace detr_fast::cpu {
namespace {

struct Found {
  bool invalid, huge;
};

template <class Real>
Found inspect(const Real* cost, size_t size, bool maximize) {
  using Mask = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;  // as wide: vectors
  // Above this a sum of path lengths could overflow a double and make a feasible problem look
  // infeasible. No float comes near.
  constexpr Real kLimit = sizeof(Real) == 4 ? std::numeric_limits<Real>::max() : Real(1e300);
  const Real sign = maximize ? Real(-1) : Real(1);
  Mask invalid = 0, huge = 0;
  for (size_t k = 0; k < size; ++k) {
    const Real x = sign * cost[k];
    invalid |= x > -std::numeric_limits<Real>::infinity() ? Mask(0) : Mask(1);  // NaN: not greater
    huge |= x > kLimit || x < -kLimit ? Mask(1) : Mask(0);
  }
  return {invalid != 0, huge != 0 && sizeof(Real) == 8};
}

}  // namespace

template <class Real>
Fault assign(const Problem<Real>* problems, int64_t count, bool maximize, int64_t* row_index,
             int64_t* col_index) {
  Solver<Real> solver;
  std::vector<Real> copy;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t rows = problems[p].rows, cols = problems[p].cols;
    const size_t size = static_cast<size_t>(rows) * cols;
    if (size == 0) continue;
    const Real* const cost = problems[p].cost;
    const Found found = inspect(cost, size, maximize);
    if (found.invalid) return {Status::kInvalidCost, p};

    // A power of two: scaling rounds nothing but what is 1e290 times smaller than the largest cost.
    const Real factor = Real((maximize ? -1.0 : 1.0) * (found.huge ? 0x1p-64 : 1.0));
    const bool transpose = rows > cols;
    const int64_t fewer = transpose ? cols : rows, more = transpose ? rows : cols;
    const int64_t stride = padded(more);
    copy.resize(static_cast<size_t>(fewer) * stride);
    for (int64_t i = 0; i < fewer; ++i) {
      Real* const out = copy.data() + i * stride;
      if (transpose)
        for (int64_t j = 0; j < more; ++j) out[j] = factor * cost[j * cols + i];
      else
        for (int64_t j = 0; j < more; ++j) out[j] = factor * cost[i * cols + j];
      for (int64_t j = more; j < stride; ++j) out[j] = std::numeric_limits<Real>::infinity();
    }
    const Status status = solver.solve(copy.data(), fewer, more, stride);
    if (status != Status::kOk) return {status, p};

    const std::vector<int32_t>& partner = transpose ? solver.row_of_col : solver.col_of_row;
    for (int64_t i = 0; i < rows; ++i) {
      if (partner[i] < 0) continue;
      *row_index++ = i;
      *col_index++ = partner[i];
    }
  }
  return {};
}

template Fault assign(const Problem<float>*, int64_t, bool, int64_t*, int64_t*);
template Fault assign(const Problem<double>*, int64_t, bool, int64_t*, int64_t*);

}  // namespace detr_fast::cpu
