// The box losses of all decoder layers, their gradient, and the classes the queries should have.
// On one thread: a training step has a few thousand pairs, less work than waking a second thread.
#include <algorithm>

#include "cpu/box_ops.h"

namespace detr_fast::cpu {

template <class T>
void box_losses(const BoxLossInput<T>& in, RealOf<T>* coordinates, RealOf<T>* giou) {
  for (int64_t layer = 0; layer < in.matched.layers; ++layer) {
    BoxLoss<double> sum;
    for (int64_t t = 0; t < in.matched.targets; ++t) {
      const int64_t place = in.matched.place_of(layer, t);
      if (place < 0) continue;
      const auto loss =
          pair_loss(load_box(in.boxes + place * 4), load_box(in.target_boxes + t * 4), in.kind);
      sum.coordinates += loss.coordinates;
      sum.giou += loss.giou;
    }
    coordinates[layer] = static_cast<RealOf<T>>(sum.coordinates);
    giou[layer] = static_cast<RealOf<T>>(sum.giou);
  }
}

template <class T>
void box_losses_backward(const BoxLossInput<T>& in, const RealOf<T>* by_coordinates,
                         int64_t coordinates_stride, const RealOf<T>* by_giou, int64_t giou_stride,
                         T* gradient) {
  const Matched& m = in.matched;
  std::fill(gradient, gradient + m.layers * m.images * m.queries * 4, T{});
  for (int64_t layer = 0; layer < m.layers; ++layer) {
    const BoxLoss<RealOf<T>> by = {by_coordinates[layer * coordinates_stride],
                                   by_giou[layer * giou_stride]};
    for (int64_t t = 0; t < m.targets; ++t) {
      const int64_t place = m.place_of(layer, t);
      if (place < 0) continue;
      RealOf<T> sum[4];  // starts from the sum over earlier targets of the same query
      for (int k = 0; k < 4; ++k) sum[k] = to_real(gradient[place * 4 + k]);
      add_pair_gradient(load_box(in.boxes + place * 4), load_box(in.target_boxes + t * 4), in.kind,
                        by, sum);
      for (int k = 0; k < 4; ++k) store(gradient + place * 4 + k, sum[k]);
    }
  }
}

void target_classes(const Matched& m, const int64_t* labels, int64_t no_object, int64_t* classes) {
  std::fill(classes, classes + m.layers * m.images * m.queries, no_object);
  for (int64_t layer = 0; layer < m.layers; ++layer)
    for (int64_t t = 0; t < m.targets; ++t) {
      const int64_t place = m.place_of(layer, t);
      if (place < 0) continue;
      classes[place] = labels[t] < 0 || labels[t] > no_object ? no_object : labels[t];
    }
}

#define DETR_FAST_BOX_LOSSES(T)                                                           \
  template void box_losses<T>(const BoxLossInput<T>&, RealOf<T>*, RealOf<T>*);            \
  template void box_losses_backward<T>(const BoxLossInput<T>&, const RealOf<T>*, int64_t, \
                                       const RealOf<T>*, int64_t, T*);
DETR_FAST_BOX_LOSSES(float)
DETR_FAST_BOX_LOSSES(double)
DETR_FAST_BOX_LOSSES(Half)
DETR_FAST_BOX_LOSSES(Bfloat)

}  // namespace detr_fast::cpu
