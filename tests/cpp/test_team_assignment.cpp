// The GPU version of the solver, run by emulated warps and blocks: every result is proven optimal
// by dual variables, whatever the order of the lanes.
#include "core/team_assignment.h"
#include "emulated_team.h"
#include "problems.h"

using namespace detr_fast;

namespace {

template <class Real>
struct TeamForm {
  int warps;
  int64_t room;          // costs that the block's own memory has space for
  int32_t warp_columns;  // with more, the whole block searches
  uint32_t seed = 0;
  std::vector<int32_t> cols_ = {}, rows_ = {};

  const std::vector<int32_t>& col_of_row() const { return cols_; }
  const std::vector<int32_t>& row_of_col() const { return rows_; }

  Status solve(const Real* cost, int64_t rows, int64_t cols, int64_t stride) {
    // Exactly as large as specified, so that AddressSanitizer detects accesses beyond it.
    std::unique_ptr<double[]> memory(new double[(SolverMemory::bytes(rows, cols) + 7) / 8]);
    std::unique_ptr<Real[]> space(new Real[room]);
    const SolverMemory parts(memory.get(), rows, cols);
    cols_.assign(rows, -1);
    rows_.assign(cols, -1);
    Status status = Status::kOutOfMemory;
    emulate(warps, ++seed, [&](EmulatedBlock& block) {
      TeamSolver<EmulatedBlock, Real> solver(block, parts, space.get(), room, warp_columns);
      const Status mine = solver.solve(cost, static_cast<int32_t>(rows), static_cast<int32_t>(cols),
                                       static_cast<int32_t>(stride));
      if (block.rank() == 0) status = mine;
      if (mine == Status::kOk)
        for (int32_t i = block.rank(); i < rows; i += block.size()) cols_[i] = solver.col_of_row(i);
    });
    if (status == Status::kOk)
      for (int64_t i = 0; i < rows; ++i) rows_[cols_[i]] = static_cast<int32_t>(i);
    return status;
  }
};

void check_faults() {
  TeamForm<float> form{2, 100, 50};
  for (const float bad : {NAN, -INFINITY}) {
    std::vector<float> cost(5 * 9, 1.0f);
    cost[3 * 9 + 4] = bad;
    CHECK(form.solve(cost.data(), 5, 9, 9) == Status::kInvalidCost);
    for (int j = 0; j < 9; ++j) cost[1 * 9 + j] = INFINITY;  // and a row without any allowed column
    CHECK(form.solve(cost.data(), 5, 9, 9) == Status::kInvalidCost);
  }
}

template <class Real>
void check_against_proof(const Matrix<Real>& matrix) {
  TeamForm<Real> form{2, 100000, 100};
  CHECK(form.solve(matrix.cost.data(), matrix.rows, matrix.cols, matrix.stride) == Status::kOk);
  CHECK(is_optimal(matrix, form.col_of_row()));
}

// At prices that suit the first two rows, the digits of all others would be lost.
template <class Real>
void check_costs_of_two_rows_hide_nothing() {
  std::mt19937 random(9);
  std::uniform_real_distribution<Real> uniform(1, 2);
  for (const int cols : {60, 40}) {
    Matrix<Real> matrix(40, cols, cols);
    for (int i = 0; i < 40; ++i)
      for (int j = 0; j < cols; ++j)
        matrix(i, j) = i < 2 ? Real(1e20) : j < 2 ? Real(0.5) : uniform(random);
    matrix(0, cols - 1) = matrix(1, cols - 1) = 0;
    matrix(0, cols - 2) = 1;
    check_against_proof(matrix);
  }
}

// Prices are multiples of the costs, and must not overflow.
void check_largest_costs() {
  std::mt19937 random(10);
  const Matrix<float> crowded = make_matrix<float>(Family::kCrowded, 40, 90, 90, random);
  Matrix<float> matrix = crowded;
  for (float& x : matrix.cost) x *= 0x1p125f;
  TeamForm<float> form{2, 100000, 100};
  CHECK(form.solve(matrix.cost.data(), 40, 90, 90) == Status::kOk);
  for (int i = 0; i < 40; ++i) CHECK(form.row_of_col()[form.col_of_row()[i]] == i);
  for (float& x : matrix.cost) x *= 0x1p-125f;
  CHECK(is_optimal(matrix, form.col_of_row()));
}

}  // namespace

int main() {
  check_costs_of_two_rows_hide_nothing<float>();
  check_costs_of_two_rows_hide_nothing<double>();
  check_largest_costs();
  for (const int64_t room : {0, 1000, 100000}) {
    TeamForm<float> warp{1, room, 1000};
    check_solver<float>(warp, 1, 1);
    TeamForm<float> block{3, room, 30};
    check_solver<float>(block, 1, 1);
  }
  TeamForm<double> doubles{2, 100000, 100};
  check_solver<double>(doubles, 16, 1);
  check_faults();
}
