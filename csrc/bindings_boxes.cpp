// The ops on boxes in detr_fast._C and detr_fast._C.cuda. Callers' duties: see bindings.cpp.
#include "bindings.h"
#include "cpu/box_ops.h"
#ifdef DETR_FAST_CUDA
#include "cuda/box_ops.h"
#endif

namespace py = pybind11;

namespace detr_fast {
namespace {

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
void box_iou_as(const BoxPairsOf& pairs, Address out, int threads) {
  auto in = pairs.as<cpu::BoxPairs<Real>, Real>();
  in.threads = threads;
  cpu::box_iou(in, at<Real>(out));
}

template <class Real>
void box_iou_backward_as(const BoxPairsOf& pairs, Address gradient, Address out1, Address out2,
                         int threads) {
  auto in = pairs.as<cpu::BoxPairs<Real>, Real>();
  in.threads = threads;
  cpu::box_iou_backward(in, at<const Real>(gradient), at<Real>(out1), at<Real>(out2));
}

// Calls run(T()), T being the type of a dtype code: 0 float32, 1 float16, 2 bfloat16, 3 float64.
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

Matched matched_of(Address query_index, Address image_offsets, bool offsets_are_int64,
                   const MatchedShape& shape) {
  Matched m = {};
  m.query_index = at<const int64_t>(query_index);
  m.image_offsets = at<const void>(image_offsets);
  m.offsets_are_int64 = offsets_are_int64;
  std::tie(m.layers, m.images, m.queries, m.targets) = shape;
  return m;
}

template <class T>
BoxLossInput<T> box_loss_input(const MatchedBoxes& addresses, const MatchedShape& shape,
                               bool offsets_are_int64, bool smooth) {
  const auto [boxes, target_boxes, query_index, image_offsets] = addresses;
  return {matched_of(query_index, image_offsets, offsets_are_int64, shape), at<const T>(boxes),
          at<const RealOf<T>>(target_boxes),
          smooth ? CoordinateLoss::kSmoothL1 : CoordinateLoss::kL1};
}

}  // namespace

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
      "boxes: addresses of [B, N, 4] and [B, M, 4]; shape: (B, N, M); options: (whether "
      "float64, else float32; whether cxcywh, else xyxy; generalized); out: address of [B, N, M], "
      "written; threads.");
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
      "boxes, shape, options, the gradient [B, N, M], (out1, out2) of the boxes' shapes, threads.");
  m.def(
      "box_losses",
      [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool offsets_are_int64,
         bool smooth, Address coordinates, Address giou) {
        const py::gil_scoped_release release;
        with_dtype(dtype, [&](auto t) {
          using T = decltype(t);
          cpu::box_losses(box_loss_input<T>(in, shape, offsets_are_int64, smooth),
                          at<RealOf<T>>(coordinates), at<RealOf<T>>(giou));
        });
      },
      "(boxes [L, B, N, 4], target_boxes [T, 4], query_index [L, T], image_offsets [B + 1]), (L, "
      "B, N, T), dtype of boxes as for match, whether offsets are int64 (else int32), whether L1 "
      "is smooth, and the sums, written: coordinates [L], giou [L]. The sums and target_boxes are "
      "float64 if boxes are, else float32.");
  m.def(
      "box_losses_backward",
      [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool offsets_are_int64,
         bool smooth, std::pair<Address, int64_t> by_coordinates,
         std::pair<Address, int64_t> by_giou, Address gradient) {
        const py::gil_scoped_release release;
        with_dtype(dtype, [&](auto t) {
          using T = decltype(t);
          cpu::box_losses_backward(box_loss_input<T>(in, shape, offsets_are_int64, smooth),
                                   at<const RealOf<T>>(by_coordinates.first), by_coordinates.second,
                                   at<const RealOf<T>>(by_giou.first), by_giou.second,
                                   at<T>(gradient));
        });
      },
      "The first five arguments of box_losses, (address, stride) of the gradient of each sum [L], "
      "and the gradient of the boxes, written.");
  m.def(
      "target_classes",
      [](Address query_index, Address image_offsets, bool offsets_are_int64,
         const MatchedShape& shape, Address labels, int64_t no_object, Address classes) {
        const py::gil_scoped_release release;
        cpu::target_classes(matched_of(query_index, image_offsets, offsets_are_int64, shape),
                            at<const int64_t>(labels), no_object, at<int64_t>(classes));
      },
      "query_index [L, T], image_offsets [B + 1], whether offsets are int64, (L, B, N, T), labels "
      "int64 [T], the no-object class, classes int64 [L, B, N], written.");
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
        [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool offsets_are_int64,
           bool smooth, Address coordinates, Address giou, int device, Stream stream) {
          const py::gil_scoped_release release;
          with_dtype(dtype, [&](auto t) {
            using T = decltype(t);
            cuda::box_losses(box_loss_input<T>(in, shape, offsets_are_int64, smooth),
                             at<RealOf<T>>(coordinates), at<RealOf<T>>(giou), device, stream);
          });
        });
  m.def("box_losses_backward",
        [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool offsets_are_int64,
           bool smooth, std::pair<Address, int64_t> by_coordinates,
           std::pair<Address, int64_t> by_giou, Address gradient, int device, Stream stream) {
          const py::gil_scoped_release release;
          with_dtype(dtype, [&](auto t) {
            using T = decltype(t);
            cuda::box_losses_backward(box_loss_input<T>(in, shape, offsets_are_int64, smooth),
                                      at<const RealOf<T>>(by_coordinates.first),
                                      by_coordinates.second, at<const RealOf<T>>(by_giou.first),
                                      by_giou.second, at<T>(gradient), device, stream);
          });
        });
  m.def("target_classes", [](Address query_index, Address image_offsets, bool offsets_are_int64,
                             const MatchedShape& shape, Address labels, int64_t no_object,
                             Address classes, int device, Stream stream) {
    const py::gil_scoped_release release;
    cuda::target_classes(matched_of(query_index, image_offsets, offsets_are_int64, shape),
                         at<const int64_t>(labels), no_object, at<int64_t>(classes), device,
                         stream);
  });
}
#endif

}  // namespace detr_fast
