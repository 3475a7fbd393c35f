// The box losses of DETR (Carion et al. 2020, section 3.1): for each decoder layer, the sums over
// its matched pairs of |box - target|_1 and of 1 - GIoU; and the class that each query should have.
// This file has what the CPU and GPU versions of these ops share; each has its own loops.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/box.h"
#include "core/box_gradient.h"
#include "core/half.h"
#include "core/host_device.h"
#include "core/number.h"

namespace detr_fast {

enum class CoordinateLoss : int { kL1 = 0, kSmoothL1 = 1 };

// The type used to compute with boxes that are stored as T.
template <class T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Which query is matched to which target. The contents are not trusted: an index out of range
// counts as unmatched.
struct Matched {
  const int64_t* query_index;  // [L, T]; -1 = unmatched
  const void* image_offsets;   // [B + 1] where each image's targets begin, and the last image's end
  bool offsets_are_int64;      // else int32
  int64_t layers, images, queries, targets;  // L, B, N, T

  DETR_FAST_HD int64_t offset(int64_t b) const {
    return offsets_are_int64 ? static_cast<const int64_t*>(image_offsets)[b]
                             : static_cast<const int32_t*>(image_offsets)[b];
  }

  // The targets of image b are begin(b)..end(b)-1.
  DETR_FAST_HD int64_t begin(int64_t b) const {
    const int64_t first = offset(b);
    return first < 0 ? 0 : first;
  }
  DETR_FAST_HD int64_t end(int64_t b) const {
    const int64_t last = offset(b + 1);
    return last > targets ? targets : last;
  }

  // The image of target t, or -1 if t belongs to no image.
  DETR_FAST_HD int64_t image_of(int64_t t) const {
    int64_t low = 0, high = images;  // the first b in low..high with offset(b + 1) > t
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (offset(middle + 1) > t)
        high = middle;
      else
        low = middle + 1;
    }
    return low < images && offset(low) <= t ? low : -1;
  }

  // The index of a query in [L, B, N].
  DETR_FAST_HD int64_t place(int64_t layer, int64_t image, int64_t query) const {
    return (layer * images + image) * queries + query;
  }

  // The place of the query that is matched to target t in a layer, or -1.
  DETR_FAST_HD int64_t place_of(int64_t layer, int64_t t) const {
    const int64_t query = query_index[layer * targets + t];
    if (query < 0 || query >= queries) return -1;
    const int64_t image = image_of(t);
    return image < 0 ? -1 : place(layer, image, query);
  }
};

template <class T>
struct BoxLossInput {
  using Real = RealOf<T>;
  Matched matched;
  const T* boxes;            // [L, B, N, 4] cxcywh
  const Real* target_boxes;  // [T, 4] cxcywh
  CoordinateLoss kind;
};

template <class Real>
struct BoxLoss {
  Real coordinates = 0, giou = 0;
};

DETR_FAST_HD inline double to_real(double x) { return x; }
template <class T>
DETR_FAST_HD inline float to_real(T x) {
  return to_float(x);
}
DETR_FAST_HD inline void store(double* to, double x) { *to = x; }

template <class T>
DETR_FAST_HD inline Box<RealOf<T>> load_box(const T* at) {
  return make_box(to_real(at[0]), to_real(at[1]), to_real(at[2]), to_real(at[3]));
}

template <class Real>
DETR_FAST_HD inline Real coordinate_loss(Real difference, CoordinateLoss kind) {
  const Real d = magnitude(difference), half = Real(0.5);
  return kind == CoordinateLoss::kL1 ? d : d < 1 ? half * d * d : d - half;
}

template <class Real>
DETR_FAST_HD inline Real coordinate_slope(Real d, CoordinateLoss kind) {
  if (kind == CoordinateLoss::kSmoothL1 && magnitude(d) < 1) return d;
  return d > 0 ? Real(1) : d < 0 ? Real(-1) : Real(0);
}

template <class Real>
DETR_FAST_HD inline BoxLoss<Real> pair_loss(const Box<Real>& box, const Box<Real>& target,
                                            CoordinateLoss kind) {
  return {coordinate_loss(box.cx - target.cx, kind) + coordinate_loss(box.cy - target.cy, kind) +
              coordinate_loss(box.w - target.w, kind) + coordinate_loss(box.h - target.h, kind),
          1 - pair_iou<true>(box, target)};
}

// Adds to `out` the derivative with respect to cx, cy, w, h of `box`; `by` holds the derivatives
// with respect to the two losses.
template <class Real>
DETR_FAST_HD inline void add_pair_gradient(const Box<Real>& box, const Box<Real>& target,
                                           CoordinateLoss kind, const BoxLoss<Real>& by,
                                           Real out[4]) {
  Real giou[4];
  by_centre(pair_iou_gradient<true>(box, target), giou);
  const Real difference[4] = {box.cx - target.cx, box.cy - target.cy, box.w - target.w,
                              box.h - target.h};
  for (int k = 0; k < 4; ++k)
    out[k] += by.coordinates * coordinate_slope(difference[k], kind) - by.giou * giou[k];
}

}  // namespace detr_fast
