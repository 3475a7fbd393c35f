// The ops on boxes in detr_fast._C and detr_fast._C.cuda. Callers' duties: see bindings.cpp.
#include "bindings.h"
#include "core/dtype.h"
#include "cpu/box_ops.h"
#ifdef DETR_FAST_CUDA
#include "cuda/box_ops.h"
#endif

namespace py = pybind11;

namespace detr_fast {
namespace {

// Addresses of [B, N, 4] and [B, M, 4]; (B, N, M); (whether float64, else float32; whether cxcywh,
// else xyxy; whether generalized).
using BoxAddresses = std::tuple<Address, Address>;
using PairShape = std::tuple<int64_t, int64_t, int64_t>;
using PairOptions = std::tuple<bool, bool, bool>;

// Calls run(pairs), BoxPairs of float or of double.
template <class Run>
void with_pairs(const BoxAddresses& boxes, const PairShape& shape, const PairOptions& options,
                Run run) {
  const auto [is_double, by_centre, generalized] = options;
  const auto [batch, count1, count2] = shape;
  const auto pairs_of = [&](auto real) {
    using Real = const decltype(real);
    return BoxPairs<decltype(real)>{at<Real>(std::get<0>(boxes)),
                                    at<Real>(std::get<1>(boxes)),
                                    batch,
                                    count1,
                                    count2,
                                    by_centre,
                                    generalized};
  };
  is_double ? run(pairs_of(double())) : run(pairs_of(float()));
}

// Calls run(T()), T being the dtype's type.
template <class Run>
void with_dtype(Dtype dtype, Run run) {
  switch (dtype) {
    case Dtype::kFloat32:
      return run(float());
    case Dtype::kFloat16:
      return run(Half());
    case Dtype::kBfloat16:
      return run(Bfloat());
    case Dtype::kFloat64:
      return run(double());
  }
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
  m.def(
      "box_iou",
      [](const BoxAddresses& boxes, const PairShape& shape, const PairOptions& options, Address out,
         int threads) {
        const py::gil_scoped_release release;
        with_pairs(boxes, shape, options, [&](auto pairs) {
          cpu::box_iou(pairs, at<typename decltype(pairs)::Number>(out), threads);
        });
      },
      "boxes: addresses of [B, N, 4] and [B, M, 4]; shape: (B, N, M); options: (whether "
      "float64, else float32; whether cxcywh, else xyxy; generalized); out: address of [B, N, M], "
      "written; threads.");
  m.def(
      "box_iou_backward",
      [](const BoxAddresses& boxes, const PairShape& shape, const PairOptions& options,
         Address gradient, const BoxAddresses& out, int threads) {
        const py::gil_scoped_release release;
        with_pairs(boxes, shape, options, [&](auto pairs) {
          using Real = typename decltype(pairs)::Number;
          cpu::box_iou_backward(pairs, at<const Real>(gradient), at<Real>(std::get<0>(out)),
                                at<Real>(std::get<1>(out)), threads);
        });
      },
      "boxes, shape, options, the gradient [B, N, M], (out1, out2) of the boxes' shapes, threads.");
  m.def(
      "box_losses",
      [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool offsets_are_int64,
         bool smooth, Address coordinates, Address giou) {
        const py::gil_scoped_release release;
        with_dtype(static_cast<Dtype>(dtype), [&](auto t) {
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
        with_dtype(static_cast<Dtype>(dtype), [&](auto t) {
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
  m.def("box_iou", [](const BoxAddresses& boxes, const PairShape& shape, const PairOptions& options,
                      Address out, int device, Stream stream) {
    const py::gil_scoped_release release;
    with_pairs(boxes, shape, options, [&](auto pairs) {
      cuda::box_iou(pairs, at<typename decltype(pairs)::Number>(out), device, stream);
    });
  });
  m.def("box_iou_backward",
        [](const BoxAddresses& boxes, const PairShape& shape, const PairOptions& options,
           Address gradient, const BoxAddresses& out, int device, Stream stream) {
          const py::gil_scoped_release release;
          with_pairs(boxes, shape, options, [&](auto pairs) {
            using Real = typename decltype(pairs)::Number;
            cuda::box_iou_backward(pairs, at<const Real>(gradient), at<Real>(std::get<0>(out)),
                                   at<Real>(std::get<1>(out)), device, stream);
          });
        });
  m.def("box_losses",
        [](const MatchedBoxes& in, const MatchedShape& shape, int dtype, bool offsets_are_int64,
           bool smooth, Address coordinates, Address giou, int device, Stream stream) {
          const py::gil_scoped_release release;
          with_dtype(static_cast<Dtype>(dtype), [&](auto t) {
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
          with_dtype(static_cast<Dtype>(dtype), [&](auto t) {
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
