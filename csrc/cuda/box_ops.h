// The launchers of the ops on boxes; they behave as described in cuda/ops.h.
#pragma once

#include <cstdint>

#include "core/box_loss.h"
#include "core/box_pairs.h"
#include "cuda/ops.h"

namespace detr_fast::cuda {

// The same as in cpu/box_ops.h.
template <class Real>
void box_iou(const BoxPairs<Real>& in, Real* out, int device, Stream stream);

template <class Real>
void box_iou_backward(const BoxPairs<Real>& in, const Real* gradient, Real* out1, Real* out2,
                      int device, Stream stream);

// One kernel each.
template <class T>
void box_losses(const BoxLossInput<T>& in, RealOf<T>* coordinates, RealOf<T>* giou, int device,
                Stream stream);

template <class T>
void box_losses_backward(const BoxLossInput<T>& in, const RealOf<T>* by_coordinates,
                         int64_t coordinates_stride, const RealOf<T>* by_giou, int64_t giou_stride,
                         T* gradient, int device, Stream stream);

void target_classes(const Matched& matched, const int64_t* labels, int64_t no_object,
                    int64_t* classes, int device, Stream stream);

}  // namespace detr_fast::cuda
