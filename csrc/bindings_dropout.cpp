// Dropout on the CPU in detr_fast._C. Callers' duties: see bindings.cpp.
#include "bindings.h"
#include "cpu/dropout.h"

namespace py = pybind11;

namespace detr_fast {

void define_dropout(py::module_& m) {
  m.def(
      "dropout",
      [](Address x, int64_t count, bool bfloat, Address seed, uint32_t threshold, float scale,
         bool relu, Address out, int threads) {
        const py::gil_scoped_release release;
        const auto number = static_cast<uint64_t>(*at<const int64_t>(seed));
        const cpu::DropoutInput in = {count, number, threshold, scale, threads};
        if (bfloat)
          cpu::dropout(in, at<const Bfloat>(x), relu, at<Bfloat>(out));
        else
          cpu::dropout(in, at<const float>(x), relu, at<float>(out));
      },
      "x [count], count, whether bfloat16 (else float32), the address of an int64 seed, how many "
      "of 65536 elements are dropped, the scale of the others, whether to apply it to max(x, 0), "
      "out [count], written, threads.");
  m.def(
      "relu_dropout_backward",
      [](Address gradient, Address out, int64_t count, bool bfloat, float scale, Address by_input,
         int threads) {
        const py::gil_scoped_release release;
        const cpu::DropoutInput in = {count, 0, 0, scale, threads};
        if (bfloat)
          cpu::relu_dropout_backward(in, at<const Bfloat>(gradient), at<const Bfloat>(out),
                                     at<Bfloat>(by_input));
        else
          cpu::relu_dropout_backward(in, at<const float>(gradient), at<const float>(out),
                                     at<float>(by_input));
      },
      "The gradient of dropout of max(x, 0) with respect to x, from out and its gradient.");
}

}  // namespace detr_fast
