// IoU and generalised IoU of every pair of boxes, and its gradients.
#include <algorithm>

#include "core/box_gradient.h"
#include "cuda/box_ops.h"
#include "cuda/launch.h"

namespace detr_fast::cuda {
namespace {

constexpr int kColumns = 128;                   // of the output, one per thread of a block
constexpr int kRows = 8;                        // of the output, for each thread
constexpr int kOwners = 32, kSlices = 8;        // of a block of the backward pass
constexpr int64_t kGridLimit = int64_t(65535);  // of a grid's y and z dimensions

// Blocks: columns in x, rows in y, batch in z; in y and z each block loops over what exceeds the
// grid.
template <bool kGeneralized, class Real>
__global__ void __launch_bounds__(kColumns) all_pairs(const BoxPairs<Real> in, Real* out) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  if (j >= in.count2) return;
  for (int64_t b = blockIdx.z; b < in.batch; b += gridDim.z) {
    const Box<Real> second = load_pair_box(in.boxes2 + (b * in.count2 + j) * 4, in.by_centre);
    for (int64_t first = blockIdx.y * int64_t(kRows); first < in.count1;
         first += gridDim.y * int64_t(kRows)) {
      const int64_t end = first + kRows < in.count1 ? first + kRows : in.count1;
      for (int64_t i = first; i < end; ++i) {
        const int64_t row = b * in.count1 + i;
        out[row * in.count2 + j] =
            pair_iou<kGeneralized>(load_pair_box(in.boxes1 + row * 4, in.by_centre), second);
      }
    }
  }
}

// The gradient with respect to the `own` boxes [B, P, 4] over all `others` [B, Q, 4]. The gradient
// of the output for a pair is at b * P * Q + p * own_stride + q * other_stride. Each thread sums a
// slice of the others, and the slices are added in order.
template <bool kGeneralized, class Real>
__global__ void __launch_bounds__(kOwners* kSlices)
    own_gradient(const Real* own, const Real* others, int64_t batch, int64_t own_count,
                 int64_t other_count, int64_t own_stride, int64_t other_stride, bool by_centre_,
                 const Real* gradient, Real* out) {
  __shared__ Real partial[kSlices][kOwners][4];
  const int lane = threadIdx.x % kOwners, slice = threadIdx.x / kOwners;
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kOwners + lane;
  for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    Real sum[4] = {0, 0, 0, 0};
    if (p < own_count) {
      const Box<Real> box = load_pair_box(own + (b * own_count + p) * 4, by_centre_);
      const Real* const g = gradient + b * own_count * other_count + p * own_stride;
      for (int64_t q = slice; q < other_count; q += kSlices) {
        const Box<Real> other = load_pair_box(others + (b * other_count + q) * 4, by_centre_);
        const auto d = pair_iou_gradient<kGeneralized>(box, other);
        const Real by = g[q * other_stride];
        sum[0] += by * d.x0;
        sum[1] += by * d.y0;
        sum[2] += by * d.x1;
        sum[3] += by * d.y1;
      }
    }
    for (int k = 0; k < 4; ++k) partial[slice][lane][k] = sum[k];
    __syncthreads();
    if (slice == 0 && p < own_count) {
      for (int s = 1; s < kSlices; ++s)
        for (int k = 0; k < 4; ++k) sum[k] += partial[s][lane][k];
      Real* const to = out + (b * own_count + p) * 4;
      const CornerGradient<Real> corners = {sum[0], sum[1], sum[2], sum[3]};
      if (by_centre_) by_centre(corners, sum);
      for (int k = 0; k < 4; ++k) to[k] = sum[k];
    }
    __syncthreads();
  }
}

unsigned grid(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

unsigned limited(int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kGridLimit)); }

}  // namespace

template <class Real>
void box_iou(const BoxPairs<Real>& in, Real* out, int device, Stream stream) {
  if (in.batch * in.count1 * in.count2 == 0) return;
  const DeviceGuard guard(device);
  const dim3 blocks(grid(in.count2, kColumns), limited(grid(in.count1, kRows)), limited(in.batch));
  const auto kernel = in.generalized ? all_pairs<true, Real> : all_pairs<false, Real>;
  kernel<<<blocks, kColumns, 0, stream_at(stream)>>>(in, out);
  check_launch("all_pairs");
}

template <class Real>
void box_iou_backward(const BoxPairs<Real>& in, const Real* gradient, Real* out1, Real* out2,
                      int device, Stream stream) {
  const int64_t n = in.count1, m = in.count2;
  const DeviceGuard guard(device);
  const auto kernel = in.generalized ? own_gradient<true, Real> : own_gradient<false, Real>;
  const int threads = kOwners * kSlices;
  if (in.batch * n > 0)
    kernel<<<dim3(grid(n, kOwners), limited(in.batch)), threads, 0, stream_at(stream)>>>(
        in.boxes1, in.boxes2, in.batch, n, m, m, 1, in.by_centre, gradient, out1);
  check_launch("own_gradient");
  if (in.batch * m > 0)
    kernel<<<dim3(grid(m, kOwners), limited(in.batch)), threads, 0, stream_at(stream)>>>(
        in.boxes2, in.boxes1, in.batch, m, n, 1, m, in.by_centre, gradient, out2);
  check_launch("own_gradient");
}

template void box_iou<float>(const BoxPairs<float>&, float*, int, Stream);
template void box_iou<double>(const BoxPairs<double>&, double*, int, Stream);
template void box_iou_backward<float>(const BoxPairs<float>&, const float*, float*, float*, int,
                                      Stream);
template void box_iou_backward<double>(const BoxPairs<double>&, const double*, double*, double*,
                                       int, Stream);

}  // namespace detr_fast::cuda
