// The box losses of all decoder layers, their gradient, and the classes the queries should have.
#include "core/team_box_loss.h"
#include "cuda/box_ops.h"
#include "cuda/launch.h"
#include "cuda/team.cuh"

namespace detr_fast::cuda {
namespace {

constexpr int kSumWarps = 8, kThreads = 128;

// One block per layer.
template <class T>
__global__ void __launch_bounds__(kSumWarps* kWarpSize)
    sum_losses(const BoxLossInput<T> in, RealOf<T>* coordinates, RealOf<T>* giou) {
  // An array of numbers, as BoxLoss has initialisers and shared memory cannot be initialised.
  __shared__ RealOf<T> memory[2 * kSumWarps * kWarpSize];
  __shared__ typename Block<kSumWarps>::Memory exchange;
  const Block<kSumWarps> block(exchange);
  auto* const partial = reinterpret_cast<BoxLoss<RealOf<T>>*>(memory);
  sum_box_losses(block, in, blockIdx.x, partial);
  if (block.rank() == 0) {
    coordinates[blockIdx.x] = partial[0].coordinates;
    giou[blockIdx.x] = partial[0].giou;
  }
}

// One thread per query: queries in x, images in y, layers in z.
template <class T>
__global__ void __launch_bounds__(kThreads)
    loss_gradient(const BoxLossInput<T> in, const RealOf<T>* by_coordinates,
                  int64_t coordinates_stride, const RealOf<T>* by_giou, int64_t giou_stride,
                  T* gradient) {
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t image = blockIdx.y, layer = blockIdx.z;
  if (query >= in.matched.queries) return;
  const BoxLoss<RealOf<T>> by = {by_coordinates[layer * coordinates_stride],
                                 by_giou[layer * giou_stride]};
  query_gradient(in, layer, image, query, by, gradient);
}

__global__ void __launch_bounds__(kThreads)
    wanted_classes(const Matched matched, const int64_t* labels, int64_t no_object,
                   int64_t* classes) {
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t image = blockIdx.y, layer = blockIdx.z;
  if (query >= matched.queries) return;
  classes[matched.place(layer, image, query)] =
      wanted_class(matched, labels, no_object, layer, image, query);
}

bool is_empty(const Matched& m) { return m.layers * m.images * m.queries == 0; }

// With more than 65535 images or layers the launch fails.
dim3 blocks_for(const Matched& m) {
  return dim3(static_cast<unsigned>((m.queries + kThreads - 1) / kThreads),
              static_cast<unsigned>(m.images), static_cast<unsigned>(m.layers));
}

}  // namespace

template <class T>
void box_losses(const BoxLossInput<T>& in, RealOf<T>* coordinates, RealOf<T>* giou, int device,
                Stream stream) {
  if (in.matched.layers == 0) return;
  const DeviceGuard guard(device);
  const unsigned layers = static_cast<unsigned>(in.matched.layers);
  sum_losses<<<layers, kSumWarps * kWarpSize, 0, stream_at(stream)>>>(in, coordinates, giou);
  check_launch("sum_losses");
}

template <class T>
void box_losses_backward(const BoxLossInput<T>& in, const RealOf<T>* by_coordinates,
                         int64_t coordinates_stride, const RealOf<T>* by_giou, int64_t giou_stride,
                         T* gradient, int device, Stream stream) {
  if (is_empty(in.matched)) return;
  const DeviceGuard guard(device);
  loss_gradient<<<blocks_for(in.matched), kThreads, 0, stream_at(stream)>>>(
      in, by_coordinates, coordinates_stride, by_giou, giou_stride, gradient);
  check_launch("loss_gradient");
}

void target_classes(const Matched& matched, const int64_t* labels, int64_t no_object,
                    int64_t* classes, int device, Stream stream) {
  if (is_empty(matched)) return;
  const DeviceGuard guard(device);
  wanted_classes<<<blocks_for(matched), kThreads, 0, stream_at(stream)>>>(matched, labels,
                                                                          no_object, classes);
  check_launch("wanted_classes");
}

#define DETR_FAST_BOX_LOSSES(T)                                                             \
  template void box_losses<T>(const BoxLossInput<T>&, RealOf<T>*, RealOf<T>*, int, Stream); \
  template void box_losses_backward<T>(const BoxLossInput<T>&, const RealOf<T>*, int64_t,   \
                                       const RealOf<T>*, int64_t, T*, int, Stream);
DETR_FAST_BOX_LOSSES(float)
DETR_FAST_BOX_LOSSES(double)
DETR_FAST_BOX_LOSSES(Half)
DETR_FAST_BOX_LOSSES(Bfloat)

}  // namespace detr_fast::cuda
