// detr_fast._C, except its submodule cuda. Only bindings*.cpp use Python. The callers
// (detr_fast/ops, detr_fast/matching/cpu.py, detr_fast/matching/cuda.py) own all memory, check
// shapes and values, and turn the returned status into an exception; addresses are plain integers.
// The GIL is released during computation.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "build_info.h"
#include "core/status.h"
#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cpu/pool.h"
#ifdef DETR_FAST_CUDA
#include "cuda/ops.h"
#endif

namespace py = pybind11;

namespace detr_fast {
namespace {

using Result = std::tuple<Status, int64_t, int64_t, int64_t>;  // status, problem, query, target

Result result_of(const Fault& fault) {
  return {fault.status, fault.problem, fault.query, fault.target};
}

using Index = py::array_t<int64_t>;

// Returns (fault, answer). The fault is None or (status, problem).
template <class Real>
py::tuple solve(const std::vector<cpu::Problem<Real>>& problems, bool maximize, int threads,
                py::object answer) {
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = cpu::assign(problems.data(), static_cast<int64_t>(problems.size()), maximize, threads);
  }
  if (fault.status == Status::kOk) return py::make_tuple(py::none(), std::move(answer));
  return py::make_tuple(py::make_tuple(fault.status, fault.problem), py::none());
}

template <class Real>
py::tuple assign_batch(const py::array& cost, bool maximize, int threads) {
  const int64_t rows = cost.shape(cost.ndim() - 2), cols = cost.shape(cost.ndim() - 1);
  const int64_t pairs = std::min(rows, cols);
  std::vector<py::ssize_t> shape = {pairs};
  if (cost.ndim() == 3) shape.insert(shape.begin(), cost.shape(0));
  Index row_index(shape), col_index(shape);
  std::vector<cpu::Problem<Real>> problems(cost.ndim() == 3 ? cost.shape(0) : 1);
  const Real* matrix = static_cast<const Real*>(cost.data());
  int64_t *to_rows = row_index.mutable_data(), *to_cols = col_index.mutable_data();
  for (cpu::Problem<Real>& problem : problems) {
    problem = {matrix, rows, cols, to_rows, to_cols};
    matrix += rows * cols;
    to_rows += pairs;
    to_cols += pairs;
  }
  return solve(problems, maximize, threads,
               py::make_tuple(std::move(row_index), std::move(col_index)));
}

py::tuple linear_sum_assignment(const py::array& cost, bool maximize, int threads) {
  const auto run = cost.itemsize() == sizeof(double) ? assign_batch<double> : assign_batch<float>;
  return run(cost, maximize, threads);
}

// Returns None unless the solver can read all arrays in place.
template <class Real>
py::object assign_arrays(const py::list& costs, bool maximize, int threads) {
  const size_t count = costs.size();
  std::vector<cpu::Problem<Real>> problems(count);
  py::list pairs(count);
  for (size_t p = 0; p < count; ++p) {
    const py::handle item = costs[p];
    if (!py::isinstance<py::array_t<Real, py::array::c_style>>(item)) return py::none();
    const auto cost = py::reinterpret_borrow<py::array>(item);
    if (cost.ndim() != 2 || !(cost.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
      return py::none();
    const int64_t rows = cost.shape(0), cols = cost.shape(1);
    Index row_index(std::min(rows, cols)), col_index(std::min(rows, cols));
    problems[p] = {static_cast<const Real*>(cost.data()), rows, cols, row_index.mutable_data(),
                   col_index.mutable_data()};
    pairs[p] = py::make_tuple(std::move(row_index), std::move(col_index));
  }
  return solve(problems, maximize, threads, std::move(pairs));
}

py::object linear_sum_assignments(const py::list& costs, bool maximize, int threads) {
  if (!costs.empty() && py::isinstance<py::array_t<double>>(costs[0]))
    return assign_arrays<double>(costs, maximize, threads);
  return assign_arrays<float>(costs, maximize, threads);
}

Result match(const Addresses& logits, const Addresses& boxes,
             const std::tuple<int64_t, int64_t, int64_t>& shape, const std::tuple<int, int>& dtypes,
             const Addresses& labels, const Addresses& target_boxes,
             const std::vector<int64_t>& counts, const CostOptions& cost, bool nonfinite_last,
             Address index, int threads) {
  py::gil_scoped_release release;
  const std::vector<const void*> logits_at = pointers(logits), boxes_at = pointers(boxes),
                                 targets_at = pointers(target_boxes);
  std::vector<const int64_t*> labels_at;
  for (const Address a : labels) labels_at.push_back(at<const int64_t>(a));
  const auto [images, queries, classes] = shape;
  cpu::MatchInput in;
  in.logits = logits_at.data();
  in.boxes = boxes_at.data();
  in.logits_dtype = static_cast<Dtype>(std::get<0>(dtypes));
  in.boxes_dtype = static_cast<Dtype>(std::get<1>(dtypes));
  in.layers = static_cast<int64_t>(logits.size());
  in.images = images;
  in.queries = queries;
  in.classes = classes;
  in.options = pair_cost_options(cost);
  in.label_count = in.options.class_cost == ClassCost::kFocal ? classes : classes - 1;
  in.labels = labels_at.data();
  in.target_boxes = targets_at.data();
  in.counts = counts.data();
  in.nonfinite_last = nonfinite_last;
  in.threads = threads;
  return result_of(cpu::match(in, at<int64_t>(index)));
}

// Defines attributes that describe the build, for detr_fast/info.py.
void define_build(py::module_& m) {
  m.attr("compiler") = build::kCompiler;
  m.attr("build_type") = build::kType;
  m.attr("cuda_compiler") = build::kCudaCompiler;
  m.attr("cuda_architectures") = build::kCudaArchitectures;
  m.attr("cuda_reason") = build::kCudaReason;
#ifdef DETR_FAST_CUDA
  const int version = cuda::runtime_version();
  m.attr("cuda_version") =
      std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
#else
  m.attr("cuda_version") = py::none();
#endif
}

}  // namespace
}  // namespace detr_fast

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace detr_fast;
  m.doc() = "The compiled core of detr_fast. Private: use detr_fast.ops and detr_fast.matching.";

  py::enum_<Status>(m, "Status")
      .value("ok", Status::kOk)
      .value("invalid_cost", Status::kInvalidCost)
      .value("infeasible", Status::kInfeasible)
      .value("too_large", Status::kTooLarge)
      .value("invalid_label", Status::kInvalidLabel)
      .value("invalid_target_box", Status::kInvalidTargetBox)
      .value("invalid_logits", Status::kInvalidLogits)
      .value("invalid_box", Status::kInvalidBox)
      .value("invalid_pair_cost", Status::kInvalidPairCost)
      .value("out_of_memory", Status::kOutOfMemory);

  m.def("linear_sum_assignment", &linear_sum_assignment, py::arg("cost").noconvert(),
        py::arg("maximize"), py::arg("threads"),
        "cost: aligned contiguous array [R, C] or [P, R, C] of float32 or float64. Returns "
        "(fault, (row_index, col_index)); fault is None, or (status, problem).");

  m.def("linear_sum_assignments", &linear_sum_assignments, py::arg("costs"), py::arg("maximize"),
        py::arg("threads"),
        "costs: list of arrays. Returns (fault, list of (row_index, col_index)), or None unless "
        "all are aligned contiguous matrices of float32, or all of float64.");

  m.def(
      "match", &match, py::arg("logits"), py::arg("boxes"), py::arg("shape"), py::arg("dtypes"),
      py::arg("labels"), py::arg("target_boxes"), py::arg("counts"), py::arg("cost"),
      py::arg("nonfinite_last"), py::arg("index"), py::arg("threads"),
      "logits, boxes: one address per layer, contiguous [B, N, C] and [B, N, 4]; shape: (B, N, "
      "C); dtypes of both: 0 float32, 1 float16, 2 bfloat16, 3 float64 (both or neither); "
      "labels, target_boxes, counts: one per image, int64 [M], [M, 4] in float64 if logits are, "
      "else float32, and M; cost: ((class, bbox, giou), focal, (alpha, gamma, eps), (giou added, "
      "giou lowest)); index: int64, written: for each layer and each image, min(N, M) queries "
      "and then their targets. Returns (status, problem, query, target) of the first fault; for a "
      "target's label or box, `problem` is the image.");

  m.def("pool_size", &cpu::pool_size,
        "The number of threads that now exist in the module's own pool, callers not counted.");

  m.def("threads_in_use", &cpu::threads_in_use,
        "Which threads share the work: OpenMP (torch's) or own. If DETR_FAST_THREADS=own is set in "
        "the environment before the first call, torch's are not used.");

  m.def("simd", &cpu::simd_name, "The instruction set in use: avx512, avx2 or plain.");

  define_boxes(m);
  define_dropout(m);
  define_build(m);
#ifdef DETR_FAST_CUDA
  define_cuda(m.def_submodule("cuda"));
#endif
}
