// The CPU ops on boxes: plain functions of addresses and sizes. Real is float or double.
#pragma once

#include <cstdint>

#include "core/box_loss.h"
#include "core/box_pairs.h"

namespace detr_fast::cpu {

// out: [B, N, M]; on at most `threads` threads.
template <class Real>
void box_iou(const BoxPairs<Real>& in, Real* out, int threads);

// The gradients with respect to both batches, from the output's gradient [B, N, M]. The result is
// bitwise the same on any number of threads.
template <class Real>
void box_iou_backward(const BoxPairs<Real>& in, const Real* gradient, Real* out1, Real* out2,
                      int threads);

// Sums over the matched pairs of each layer: coordinates [L], giou [L]. T is float, double, Half or
// Bfloat.
template <class T>
void box_losses(const BoxLossInput<T>& in, RealOf<T>* coordinates, RealOf<T>* giou);

// gradient: [L, B, N, 4], written, from the gradients of the two sums: that of layer l is at
// l * stride.
template <class T>
void box_losses_backward(const BoxLossInput<T>& in, const RealOf<T>* by_coordinates,
                         int64_t coordinates_stride, const RealOf<T>* by_giou, int64_t giou_stride,
                         T* gradient);

// classes: [L, B, N], the label of each query's target, or no_object.
void target_classes(const Matched& matched, const int64_t* labels, int64_t no_object,
                    int64_t* classes);

}  // namespace detr_fast::cpu
