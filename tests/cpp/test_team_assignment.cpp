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

}  // namespace

int main() {
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
