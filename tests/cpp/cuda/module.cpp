// csrc/cuda, emulated, as a Python module with the contents of detr_fast._C.cuda.
#include "bindings.h"
#include "cuda_runtime.h"

PYBIND11_MODULE(emulated_cuda, m) {
  detr_fast::define_cuda(m);
  m.def("launches", [] { return emulated::launches; }, "How many kernels have been launched.");
  m.def("current_device", [] { return emulated::device; });
}
