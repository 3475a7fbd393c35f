// IoU and generalised IoU of every pair of boxes, and its gradients.
#include <algorithm>
#include <vector>

#include "core/box_gradient.h"
#include "cpu/box_ops.h"
#include "cpu/parallel.h"
#include "cpu/simd/kernels.h"

namespace detr_fast::cpu {

namespace {

constexpr int64_t kRowsPerChunk = 64;  // the unit of work of a thread

const IouKernels<float>& kernels_of(float) { return kernels().iou.for_float; }
const IouKernels<double>& kernels_of(double) { return kernels().iou.for_double; }

template <class Real>
void store_gradient(const CornerGradient<Real>& g, bool to_centre, Real* out) {
  if (to_centre) {
    by_centre(g, out);
  } else {
    const Real corners[4] = {g.x0, g.y0, g.x1, g.y1};
    std::copy(corners, corners + 4, out);
  }
}

// The second boxes of every batch element, as BoxColumns reads them: [B, 5, M].
template <class Real>
std::vector<Real> columns_of(const BoxPairs<Real>& in) {
  const int64_t m = in.count2;
  std::vector<Real> columns(in.batch * 5 * m);
  for (int64_t b = 0; b < in.batch; ++b)
    for (int64_t j = 0; j < m; ++j) {
      const Box<Real> box = load_pair_box(in.boxes2 + (b * m + j) * 4, in.by_centre);
      Real* const at = columns.data() + b * 5 * m + j;
      at[0] = box.x0;
      at[m] = box.y0;
      at[2 * m] = box.x1;
      at[3 * m] = box.y1;
      at[4 * m] = box.area;
    }
  return columns;
}

// Calls work(batch, first row, end row, chunk number) for all chunks of rows.
template <class Real, class Work>
void for_chunks(const BoxPairs<Real>& in, int64_t entries_per_pair, int threads, Work work) {
  const int64_t chunks = (in.count1 + kRowsPerChunk - 1) / kRowsPerChunk;
  const int64_t entries = in.batch * in.count1 * in.count2 * entries_per_pair;
  parallel_for(in.batch * chunks, entries, threads, [&](int64_t k) {
    const int64_t first = k % chunks * kRowsPerChunk;
    work(k / chunks, first, std::min(first + kRowsPerChunk, in.count1), k);
  });
}

}  // namespace

template <class Real>
void box_iou(const BoxPairs<Real>& in, Real* out, int threads) {
  const int64_t n = in.count1, m = in.count2;
  const std::vector<Real> columns = columns_of(in);
  const auto row = kernels_of(Real()).row;
  for_chunks(in, 1, threads, [&](int64_t b, int64_t first, int64_t end, int64_t) {
    for (int64_t i = first; i < end; ++i)
      row(in.generalized, load_pair_box(in.boxes1 + (b * n + i) * 4, in.by_centre),
          {columns.data() + b * 5 * m, m}, out + (b * n + i) * m);
  });
}

template <class Real>
void box_iou_backward(const BoxPairs<Real>& in, const Real* gradient, Real* out1, Real* out2,
                      int threads) {
  const int64_t n = in.count1, m = in.count2;
  const int64_t chunks = (n + kRowsPerChunk - 1) / kRowsPerChunk;
  const std::vector<Real> columns = columns_of(in);
  // Each chunk sums the gradients of the second boxes separately; the sums are then added in order.
  std::vector<Real> sums(in.batch * chunks * 4 * m, 0), scratch(in.batch * chunks * 4 * m);
  const auto row_gradient = kernels_of(Real()).row_gradient;
  for_chunks(in, 4, threads, [&](int64_t b, int64_t first, int64_t end, int64_t k) {
    for (int64_t i = first; i < end; ++i) {
      Real g[4];
      const int64_t at = b * n + i;
      row_gradient(in.generalized, load_pair_box(in.boxes1 + at * 4, in.by_centre),
                   {columns.data() + b * 5 * m, m}, gradient + at * m, g, sums.data() + k * 4 * m,
                   scratch.data() + k * 4 * m);
      store_gradient({g[0], g[1], g[2], g[3]}, in.by_centre, out1 + at * 4);
    }
  });
  for (int64_t b = 0; b < in.batch; ++b)
    for (int64_t j = 0; j < m; ++j) {
      double g[4] = {0, 0, 0, 0};
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int k = 0; k < 4; ++k) g[k] += sums[((b * chunks + chunk) * 4 + k) * m + j];
      const CornerGradient<Real> sum = {static_cast<Real>(g[0]), static_cast<Real>(g[1]),
                                        static_cast<Real>(g[2]), static_cast<Real>(g[3])};
      store_gradient(sum, in.by_centre, out2 + (b * m + j) * 4);
    }
}

template void box_iou<float>(const BoxPairs<float>&, float*, int);
template void box_iou<double>(const BoxPairs<double>&, double*, int);
template void box_iou_backward<float>(const BoxPairs<float>&, const float*, float*, float*, int);
template void box_iou_backward<double>(const BoxPairs<double>&, const double*, double*, double*,
                                       int);

}  // namespace detr_fast::cpu
