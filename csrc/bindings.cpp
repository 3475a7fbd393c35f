// detr_fast._C: the only file that knows Python. Callers (detr_fast/ops.py, detr_fast/matching.py)
// own all memory, check shapes and values, and turn the returned status into an exception;
// addresses are plain integers. The GIL is released while anything is computed.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "core/status.h"
#include "cpu/ops.h"

namespace py = pybind11;

namespace detr_fast {
namespace {

using Address = uintptr_t;
using Result = std::tuple<Status, int64_t, int64_t, int64_t>;  // status, problem, query, target

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Result result_of(const Fault& fault) {
  return {fault.status, fault.problem, fault.query, fault.target};
}

using Int64Array = py::array_t<int64_t, py::array::c_style>;

template <class Real>
Fault assign(const int64_t* entry, int64_t count, bool maximize, int64_t* index, int64_t pairs) {
  std::vector<cpu::Problem<Real>> problems(count);
  for (int64_t p = 0; p < count; ++p, entry += 3)
    problems[p] = {at<const Real>(static_cast<Address>(entry[0])), entry[1], entry[2]};
  return cpu::assign(problems.data(), count, maximize, index, index + pairs);
}

Result linear_sum_assignment(const Int64Array& problems, bool is_double, bool maximize,
                             Int64Array& index) {
  const int64_t* const entry = problems.data();
  int64_t* const out = index.mutable_data();
  const int64_t count = problems.shape(0), pairs = index.shape(1);
  py::gil_scoped_release release;
  const auto run = is_double ? assign<double> : assign<float>;
  return result_of(run(entry, count, maximize, out, pairs));
}

template <class Real>
Fault match_layers(const std::vector<Address>& logits, const std::vector<Address>& boxes,
                   const std::tuple<int64_t, int64_t, int64_t>& shape, Address labels,
                   Address target_boxes, Address offsets,
                   const std::tuple<double, double, double>& weights, Address query_index,
                   Address target_index) {
  std::vector<const Real*> logits_at, boxes_at;
  for (const Address a : logits) logits_at.push_back(at<const Real>(a));
  for (const Address a : boxes) boxes_at.push_back(at<const Real>(a));
  const auto [images, queries, classes] = shape;
  const auto [cls, bbox, giou] = weights;
  const cpu::MatchInput<Real> in = {logits_at.data(),
                                    boxes_at.data(),
                                    static_cast<int64_t>(logits.size()),
                                    images,
                                    queries,
                                    classes,
                                    at<const int64_t>(labels),
                                    at<const Real>(target_boxes),
                                    at<const int64_t>(offsets),
                                    {Real(cls), Real(bbox), Real(giou)}};
  return cpu::match(in, at<int64_t>(query_index), at<int64_t>(target_index));
}

Result match(const std::vector<Address>& logits, const std::vector<Address>& boxes,
             const std::tuple<int64_t, int64_t, int64_t>& shape, bool is_double, Address labels,
             Address target_boxes, Address offsets,
             const std::tuple<double, double, double>& weights, Address query_index,
             Address target_index) {
  py::gil_scoped_release release;
  const auto run = is_double ? match_layers<double> : match_layers<float>;
  return result_of(
      run(logits, boxes, shape, labels, target_boxes, offsets, weights, query_index, target_index));
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
      .value("invalid_logits", Status::kInvalidLogits)
      .value("invalid_box", Status::kInvalidBox)
      .value("invalid_pair_cost", Status::kInvalidPairCost);

  m.def("linear_sum_assignment", &linear_sum_assignment, py::arg("problems").noconvert(),
        py::arg("is_double"), py::arg("maximize"), py::arg("index").noconvert(),
        "problems: int64 [P, 3], each (address, rows, cols) of a contiguous matrix; index: int64 "
        "[2, sum of min(rows, cols)], written. Returns (status, problem, query, target) of the "
        "first fault.");

  m.def("match", &match, py::arg("logits"), py::arg("boxes"), py::arg("shape"),
        py::arg("is_double"), py::arg("labels"), py::arg("target_boxes"), py::arg("offsets"),
        py::arg("weights"), py::arg("query_index"), py::arg("target_index"),
        "logits, boxes: one address per layer, [B, N, C] and [B, N, 4]; shape: (B, N, C); labels: "
        "int64 [T]; target_boxes [T, 4]; offsets: int64 [B + 1]; weights: (class, bbox, giou); "
        "query_index, target_index: int64 [L, sum of min(N, M)]. "
        "Returns (status, problem, query, target) of the first fault.");
}
