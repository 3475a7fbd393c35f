// The kernels of csrc/cuda as nvcc compiles them, without a GPU, as a Python module with the same
// contents as detr_fast._C.cuda.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "broken.h"
#include "core/team_assignment.h"
#include "emulated_team.h"
#include "reductions.h"
#include "runtime.h"

namespace {

namespace py = pybind11;

// Returns each row's column, and how many rounds and steps the solver needed.
template <class Real>
std::tuple<std::vector<int32_t>, int32_t, int32_t> solve(
    const py::array_t<Real, py::array::c_style>& cost) {
  const int32_t rows = static_cast<int32_t>(cost.shape(0)),
                cols = static_cast<int32_t>(cost.shape(1));
  std::unique_ptr<double[]> memory(
      new double[(detr_fast::SolverMemory::bytes(rows, cols) + 7) / 8]);
  const detr_fast::SolverMemory parts(memory.get(), rows, cols);
  std::vector<int32_t> col_of_row(rows);
  int32_t rounds = 0, steps = 0;
  detr_fast::emulate(8, 1, [&](detr_fast::EmulatedBlock& block) {
    detr_fast::TeamSolver<detr_fast::EmulatedBlock, Real> solver(block, parts, nullptr, 0);
    CHECK(solver.solve(cost.data(), rows, cols, cols) == detr_fast::Status::kOk);
    if (block.rank() != 0) return;
    for (int32_t i = 0; i < rows; ++i) col_of_row[i] = solver.col_of_row(i);
    rounds = solver.rounds();
    steps = solver.steps();
  });
  return {col_of_row, rounds, steps};
}

}  // namespace

PYBIND11_MODULE(emulated_cuda, m) {
  detr_fast::define_cuda(m);
  m.def("allow", &ptx::allow);
  m.def("launches", &ptx::launches);
  m.def("launches_by_kernel", &ptx::launches_by_kernel);
  m.def("current_device", &ptx::current_device);
  m.def("run_broken", &ptx::run_broken);
  m.def("reduce_900", &ptx::reduce<900>);
  m.def("reduce_750", &ptx::reduce<750>);
  m.def("solve", &solve<float>, py::arg("cost").noconvert());
  m.def("solve", &solve<double>, py::arg("cost").noconvert());
}
