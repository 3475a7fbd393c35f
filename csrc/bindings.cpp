// detr_fast._C: the only file that knows Python. Callers (detr_fast/ops.py, detr_fast/matching.py)
// own all memory, check shapes and values, and turn the returned status into an exception;
// addresses are plain integers. The GIL is released while anything is computed.
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
#include "cpu/box_ops.h"
#include "cpu/ops.h"
#include "cpu/pool.h"
#ifdef DETR_FAST_CUDA
#include "cuda/box_ops.h"
#include "cuda/ops.h"
#endif

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
Fault assign(const int64_t* entry, int64_t count, bool maximize, int threads, int64_t* index,
             int64_t pairs) {
  std::vector<cpu::Problem<Real>> problems(count);
  int64_t* row_index = index;
  int64_t* col_index = index + pairs;
  for (int64_t p = 0; p < count; ++p, entry += 3) {
    problems[p] = {at<const Real>(static_cast<Address>(entry[0])), entry[1], entry[2], row_index,
                   col_index};
    row_index += std::min(entry[1], entry[2]);
    col_index += std::min(entry[1], entry[2]);
  }
  return cpu::assign(problems.data(), count, maximize, threads);
}

Result linear_sum_assignment(const Int64Array& problems, bool is_double, bool maximize,
                             Int64Array& index, int threads) {
  const int64_t* const entry = problems.data();
  int64_t* const out = index.mutable_data();
  const int64_t count = problems.shape(0), pairs = index.shape(1);
  py::gil_scoped_release release;
  const auto run = is_double ? assign<double> : assign<float>;
  return result_of(run(entry, count, maximize, threads, out, pairs));
}

// None unless all are what the solver reads in place.
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
    py::array_t<int64_t> row_index(std::min(rows, cols)), col_index(std::min(rows, cols));
    problems[p] = {static_cast<const Real*>(cost.data()), rows, cols, row_index.mutable_data(),
                   col_index.mutable_data()};
    pairs[p] = py::make_tuple(std::move(row_index), std::move(col_index));
  }
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = cpu::assign(problems.data(), static_cast<int64_t>(count), maximize, threads);
  }
  return py::make_tuple(fault.status, fault.problem, std::move(pairs));
}

py::object linear_sum_assignments(const py::list& costs, bool maximize, int threads) {
  if (!costs.empty() && py::isinstance<py::array_t<double>>(costs[0]))
    return assign_arrays<double>(costs, maximize, threads);
  return assign_arrays<float>(costs, maximize, threads);
}

using Addresses = std::vector<Address>;

std::vector<const void*> pointers(const Addresses& addresses) {
  std::vector<const void*> all;
  all.reserve(addresses.size());
  for (const Address a : addresses) all.push_back(at<const void>(a));
  return all;
}

// (class, bbox, giou), is focal, (alpha, gamma, eps), (giou_added, giou_lowest)
using CostOptions = std::tuple<std::tuple<double, double, double>, bool,
                               std::tuple<double, double, double>, std::tuple<double, double>>;

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
  const auto& [weights, focal, focal_options, giou] = cost;
  cpu::MatchInput in;
  in.logits = logits_at.data();
  in.boxes = boxes_at.data();
  in.logits_dtype = static_cast<cpu::Dtype>(std::get<0>(dtypes));
  in.boxes_dtype = static_cast<cpu::Dtype>(std::get<1>(dtypes));
  in.layers = static_cast<int64_t>(logits.size());
  in.images = images;
  in.queries = queries;
  in.classes = classes;
  in.label_count = focal ? classes : classes - 1;
  in.labels = labels_at.data();
  in.target_boxes = targets_at.data();
  in.counts = counts.data();
  std::tie(in.options.weight_class, in.options.weight_bbox, in.options.weight_giou) = weights;
  in.options.class_cost = focal ? ClassCost::kFocal : ClassCost::kSoftmax;
  std::tie(in.options.alpha, in.options.gamma, in.options.eps) = focal_options;
  std::tie(in.options.giou_added, in.options.giou_lowest) = giou;
  in.nonfinite_last = nonfinite_last;
  in.threads = threads;
  return result_of(cpu::match(in, at<int64_t>(index)));
}

// Pairwise IoU. boxes: addresses of [B, N, 4] and [B, M, 4]; shape: (B, N, M).
struct BoxPairsOf {
  std::tuple<Address, Address> boxes;
  std::tuple<int64_t, int64_t, int64_t> shape;
  bool by_centre, generalized;

  template <class Pairs, class Real>
  Pairs as() const {
    Pairs in = {};
    in.boxes1 = at<const Real>(std::get<0>(boxes));
    in.boxes2 = at<const Real>(std::get<1>(boxes));
    std::tie(in.batch, in.count1, in.count2) = shape;
    in.by_centre = by_centre;
    in.generalized = generalized;
    return in;
  }
};

template <class Real>
void box_iou_as(const BoxPairsOf& given, Address out, int threads) {
  auto in = given.as<cpu::BoxPairs<Real>, Real>();
  in.threads = threads;
  cpu::box_iou(in, at<Real>(out));
}

template <class Real>
void box_iou_backward_as(const BoxPairsOf& given, Address gradient, Address out1, Address out2,
                         int threads) {
  auto in = given.as<cpu::BoxPairs<Real>, Real>();
  in.threads = threads;
  cpu::box_iou_backward(in, at<const Real>(gradient), at<Real>(out1), at<Real>(out2));
}

// Calls run(T()) for the dtype of that code: 0 float32, 1 float16, 2 bfloat16, 3 float64.
template <class Run>
void with_dtype(int code, Run run) {
  if (code == 0) return run(float());
  if (code == 1) return run(Half());
  if (code == 2) return run(Bfloat());
  return run(double());
}

// Addresses and sizes of the box losses: (boxes [L, B, N, 4], target_boxes [T, 4], query_index
// [L, T], image_offsets [B + 1]), (L, B, N, T).
using MatchedBoxes = std::tuple<Address, Address, Address, Address>;
using MatchedShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;

Matched matched_of(Address query_index, Address image_offsets, bool wide,
                   const MatchedShape& shape) {
  Matched m = {at<const int64_t>(query_index), at<const void>(image_offsets), wide};
  std::tie(m.layers, m.images, m.queries, m.targets) = shape;
  return m;
}

template <class T>
BoxLossInput<T> box_loss_input(const MatchedBoxes& given, const MatchedShape& shape, bool wide,
                               bool smooth) {
  const auto [boxes, target_boxes, query_index, image_offsets] = given;
  return {matched_of(query_index, image_offsets, wide, shape), at<const T>(boxes),
          at<const RealOf<T>>(target_boxes),
          smooth ? CoordinateLoss::kSmoothL1 : CoordinateLoss::kL1};
}

// The ops on boxes, on the CPU.
void define_boxes(py::module_& m) {
  using Options = std::tuple<bool, bool, bool>;
  using Pairs = std::tuple<Address, Address>;
  using Shape = std::tuple<int64_t, int64_t, int64_t>;
  m.def(
      "box_iou",
      [](const Pairs& boxes, const Shape& shape, const Options& options, Address out, int threads) {
        const py::gil_scoped_release release;
        const auto [is_double, by_centre, generalized] = options;
        const auto run = is_double ? box_iou_as<double> : box_iou_as<float>;
        run({boxes, shape, by_centre, generalized}, out, threads);
      },
      "boxes: addresses of [B, N, 4] and [B, M, 4]; shape: (B, N, M); options: (float64 and not "
      "float32, cxcywh and not xyxy, generalized); out: address of [B, N, M], written; threads.");
  m.def(
      "box_iou_backward",
      [](const Pairs& boxes, const Shape& shape, const Options& options, Address gradient,
         const Pairs& out, int threads) {
        const py::gil_scoped_release release;
        const auto [is_double, by_centre, generalized] = options;
        const auto run = is_double ? box_iou_backward_as<double> : box_iou_backward_as<float>;
        run({boxes, shape, by_centre, generalized}, gradient, std::get<0>(out), std::get<1>(out),
            threads);
      },
      "boxes, shape, options, the gradient [B, N, M], (out1, out2) shaped as the boxes, threads.");
  m.def(
      "box_losses",
      [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool wide, bool smooth,
         Address coordinates, Address giou) {
        const py::gil_scoped_release release;
        with_dtype(dtype, [&](auto t) {
          using T = decltype(t);
          cpu::box_losses(box_loss_input<T>(in, shape, wide, smooth), at<RealOf<T>>(coordinates),
                          at<RealOf<T>>(giou));
        });
      },
      "(boxes [L, B, N, 4], target_boxes [T, 4], query_index [L, T], image_offsets [B + 1]), (L, "
      "B, N, T), dtype of boxes as for match, whether offsets are int64 and not int32, whether L1 "
      "is smooth, and the sums, written: coordinates [L], giou [L]. These and target_boxes are "
      "float64 if boxes are, else float32.");
  m.def(
      "box_losses_backward",
      [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool wide, bool smooth,
         std::pair<Address, int64_t> by_coordinates, std::pair<Address, int64_t> by_giou,
         Address gradient) {
        const py::gil_scoped_release release;
        with_dtype(dtype, [&](auto t) {
          using T = decltype(t);
          cpu::box_losses_backward(box_loss_input<T>(in, shape, wide, smooth),
                                   at<const RealOf<T>>(by_coordinates.first), by_coordinates.second,
                                   at<const RealOf<T>>(by_giou.first), by_giou.second,
                                   at<T>(gradient));
        });
      },
      "The first five of box_losses, (address, stride) of the gradients of both sums [L], and the "
      "gradient of the boxes, written.");
  m.def(
      "target_classes",
      [](Address query_index, Address image_offsets, bool wide, const MatchedShape& shape,
         Address labels, int64_t no_object, Address classes) {
        const py::gil_scoped_release release;
        cpu::target_classes(matched_of(query_index, image_offsets, wide, shape),
                            at<const int64_t>(labels), no_object, at<int64_t>(classes));
      },
      "query_index [L, T], image_offsets [B + 1], whether those are int64, (L, B, N, T), labels "
      "int64 [T], the class without object, classes int64 [L, B, N], written.");
}

#ifdef DETR_FAST_CUDA
// The same on a GPU: the last two arguments, instead of threads, are a device index and a stream.
void define_cuda_boxes(py::module_& m) {
  using cuda::Stream;
  using Options = std::tuple<bool, bool, bool>;
  using Pairs = std::tuple<Address, Address>;
  using Shape = std::tuple<int64_t, int64_t, int64_t>;
  m.def("box_iou", [](const Pairs& boxes, const Shape& shape, const Options& options, Address out,
                      int device, Stream stream) {
    const py::gil_scoped_release release;
    const auto [is_double, by_centre, generalized] = options;
    const BoxPairsOf in = {boxes, shape, by_centre, generalized};
    if (is_double)
      cuda::box_iou(in.as<cuda::BoxPairs<double>, double>(), at<double>(out), device, stream);
    else
      cuda::box_iou(in.as<cuda::BoxPairs<float>, float>(), at<float>(out), device, stream);
  });
  m.def("box_iou_backward", [](const Pairs& boxes, const Shape& shape, const Options& options,
                               Address gradient, const Pairs& out, int device, Stream stream) {
    const py::gil_scoped_release release;
    const auto [is_double, by_centre, generalized] = options;
    const BoxPairsOf in = {boxes, shape, by_centre, generalized};
    const auto [out1, out2] = out;
    if (is_double)
      cuda::box_iou_backward(in.as<cuda::BoxPairs<double>, double>(), at<const double>(gradient),
                             at<double>(out1), at<double>(out2), device, stream);
    else
      cuda::box_iou_backward(in.as<cuda::BoxPairs<float>, float>(), at<const float>(gradient),
                             at<float>(out1), at<float>(out2), device, stream);
  });
  m.def("box_losses",
        [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool wide, bool smooth,
           Address coordinates, Address giou, int device, Stream stream) {
          const py::gil_scoped_release release;
          with_dtype(dtype, [&](auto t) {
            using T = decltype(t);
            cuda::box_losses(box_loss_input<T>(in, shape, wide, smooth), at<RealOf<T>>(coordinates),
                             at<RealOf<T>>(giou), device, stream);
          });
        });
  m.def("box_losses_backward",
        [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool wide, bool smooth,
           std::pair<Address, int64_t> by_coordinates, std::pair<Address, int64_t> by_giou,
           Address gradient, int device, Stream stream) {
          const py::gil_scoped_release release;
          with_dtype(dtype, [&](auto t) {
            using T = decltype(t);
            cuda::box_losses_backward(box_loss_input<T>(in, shape, wide, smooth),
                                      at<const RealOf<T>>(by_coordinates.first),
                                      by_coordinates.second, at<const RealOf<T>>(by_giou.first),
                                      by_giou.second, at<T>(gradient), device, stream);
          });
        });
  m.def("target_classes",
        [](Address query_index, Address image_offsets, bool wide, const MatchedShape& shape,
           Address labels, int64_t no_object, Address classes, int device, Stream stream) {
          const py::gil_scoped_release release;
          cuda::target_classes(matched_of(query_index, image_offsets, wide, shape),
                               at<const int64_t>(labels), no_object, at<int64_t>(classes), device,
                               stream);
        });
}
#endif

// What was built, for detr_fast/info.py.
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

#ifdef DETR_FAST_CUDA
// Submodule `cuda`: the ops' GPU forms, each under the name of its CPU form. Only where built.
void define_cuda(py::module_ m) {
  m.doc() = "Launchers of CUDA kernels: device addresses, a device index and a stream's address.";
  m.def("driver_version", &cuda::driver_version,
        "The newest CUDA that the installed driver runs, 1000 * major + 10 * minor; 0 without.");
  define_cuda_boxes(m);
}
#endif

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

  m.def("linear_sum_assignment", &linear_sum_assignment, py::arg("problems").noconvert(),
        py::arg("is_double"), py::arg("maximize"), py::arg("index").noconvert(), py::arg("threads"),
        "problems: int64 [P, 3], each (address, rows, cols) of a contiguous matrix; index: int64 "
        "[2, sum of min(rows, cols)], written. Returns (status, problem, query, target) of the "
        "first fault.");

  m.def("linear_sum_assignments", &linear_sum_assignments, py::arg("costs"), py::arg("maximize"),
        py::arg("threads"),
        "costs: list of arrays. Returns (status, problem, list of (row_index, col_index)), or None "
        "unless all are aligned contiguous matrices of float32, or all of float64.");

  m.def("match", &match, py::arg("logits"), py::arg("boxes"), py::arg("shape"), py::arg("dtypes"),
        py::arg("labels"), py::arg("target_boxes"), py::arg("counts"), py::arg("cost"),
        py::arg("nonfinite_last"), py::arg("index"), py::arg("threads"),
        "logits, boxes: one address per layer, contiguous [B, N, C] and [B, N, 4]; shape: (B, N, "
        "C); dtypes of both: 0 float32, 1 float16, 2 bfloat16, 3 float64 (both or neither); "
        "labels, target_boxes, counts: one per image, int64 [M], [M, 4] in float64 or else "
        "float32, and M; cost: ((class, bbox, giou), focal, (alpha, gamma, eps), (giou added, giou "
        "lowest)); index: int64, written: for each layer, for each image min(N, M) queries and "
        "then their targets. Returns (status, problem, query, target) of the first fault; for a "
        "target's label or box `problem` is the image.");

  m.def("pool_size", &cpu::pool_size, "Threads of the pool that exist now, callers not counted.");

  m.def("simd", &cpu::simd_name, "The instruction set in use: avx512, avx2 or plain.");

  define_boxes(m);
  define_build(m);
#ifdef DETR_FAST_CUDA
  define_cuda(m.def_submodule("cuda"));
#endif
}
