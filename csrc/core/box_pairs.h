// What pairwise IoU reads.
#pragma once

#include <cstdint>

#include "core/box.h"
#include "core/host_device.h"

namespace detr_fast {

// Two batches of boxes, contiguous [B, N, 4] and [B, M, 4].
template <class Real>
struct BoxPairs {
  using Number = Real;

  const Real *boxes1, *boxes2;
  int64_t batch, count1, count2;
  bool by_centre;  // cx, cy, w, h; else x0, y0, x1, y1
  bool generalized;
};

template <class Real>
DETR_FAST_HD inline Box<Real> load_pair_box(const Real* at, bool by_centre) {
  return by_centre ? make_box(at[0], at[1], at[2], at[3])
                   : make_box_of_corners(at[0], at[1], at[2], at[3]);
}

}  // namespace detr_fast
