// Compiled once per instruction set, each time with a different DETR_FAST_SET (CMakeLists.txt).
#include "cpu/simd/box_iou_kernels.h"

#include "core/box_gradient.h"
#include "cpu/simd/set_name.h"

namespace detr_fast::cpu {
namespace {

template <class Real>
Box<Real> box_at(BoxColumns<Real> b, int64_t j) {
  const int64_t m = b.count;
  return {0,
          0,
          0,
          0,
          b.rows[j],
          b.rows[m + j],
          b.rows[2 * m + j],
          b.rows[3 * m + j],
          b.rows[4 * m + j]};
}

template <bool kGeneralized, class Real>
void fill_row(const Box<Real>& a, BoxColumns<Real> b, Real* __restrict__ out) {
  for (int64_t j = 0; j < b.count; ++j) out[j] = pair_iou<kGeneralized>(a, box_at(b, j));
}

template <class Real>
void row(bool generalized, const Box<Real>& a, BoxColumns<Real> b, Real* out) {
  generalized ? fill_row<true>(a, b, out) : fill_row<false>(a, b, out);
}

template <bool kGeneralized, class Real>
void add_row_gradient(const Box<Real>& a, BoxColumns<Real> b, const Real* __restrict__ gradient,
                      Real* out_a, Real* __restrict__ out_b, Real* __restrict__ scratch) {
  const int64_t m = b.count;
  for (int64_t j = 0; j < m; ++j) {
    const Box<Real> other = box_at(b, j);
    const auto by_a = pair_iou_gradient<kGeneralized>(a, other);
    const auto by_b = pair_iou_gradient<kGeneralized>(other, a);
    const Real g = gradient[j];
    scratch[j] = g * by_a.x0;
    scratch[m + j] = g * by_a.y0;
    scratch[2 * m + j] = g * by_a.x1;
    scratch[3 * m + j] = g * by_a.y1;
    out_b[j] += g * by_b.x0;
    out_b[m + j] += g * by_b.y0;
    out_b[2 * m + j] += g * by_b.x1;
    out_b[3 * m + j] += g * by_b.y1;
  }
  for (int k = 0; k < 4; ++k) {
    double sum = 0;
    for (int64_t j = 0; j < m; ++j) sum += scratch[k * m + j];
    out_a[k] = static_cast<Real>(sum);
  }
}

template <class Real>
void row_gradient(bool generalized, const Box<Real>& a, BoxColumns<Real> b, const Real* gradient,
                  Real* out_a, Real* out_b, Real* scratch) {
  const auto add = generalized ? add_row_gradient<true, Real> : add_row_gradient<false, Real>;
  add(a, b, gradient, out_a, out_b, scratch);
}

}  // namespace

extern const IouKernelSet DETR_FAST_OF_SET(iou) = {{row<float>, row_gradient<float>},
                                                   {row<double>, row_gradient<double>}};

}  // namespace detr_fast::cpu
