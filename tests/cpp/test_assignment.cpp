// The solver with the scalar scans of core/: every result is proven optimal by dual variables.
#include "core/assignment.h"
#include "problems.h"

using namespace detr_fast;

int main() {
  AssignmentSolver<float> solver_of_floats;
  check_solver<float>(solver_of_floats, 1, 3, 220);
  AssignmentSolver<double> solver_of_doubles;
  check_solver<double>(solver_of_doubles, 1, 3, 220);

  // Prices so high that no sum of the last row is finite.
  Matrix<double> huge(72, 72, 80);
  for (int i = 0; i < 72; ++i)
    for (int j = 0; j < 72; ++j)
      huge(i, j) = i < 71 ? 1e298 * (j + 0.001 * (i * j % 71)) : std::numeric_limits<double>::max();
  CHECK(solver_of_doubles.solve(huge.cost.data(), 72, 72, 80) == Status::kOk);
  for (int i = 0; i < 72; ++i)
    CHECK(solver_of_doubles.row_of_col()[solver_of_doubles.col_of_row()[i]] == i);

  CHECK(solver_of_doubles.solve(nullptr, 0, 0, int64_t(1) << 32) == Status::kTooLarge);

  // The proof itself must reject an assignment that is not optimal.
  Matrix<double> matrix(2, 3, 3);
  const double cost[] = {1, 2, 9, 2, 9, 9};
  for (int k = 0; k < 6; ++k) matrix.cost[k] = cost[k];
  CHECK(is_optimal(matrix, {1, 0}));
  CHECK(!is_optimal(matrix, {0, 1}));
  CHECK(!is_optimal(matrix, {2, 0}));
}
