// Which of the compiled launchers solves a call's problems.
#include "cuda/assignment.cuh"

namespace detr_fast::cuda {
namespace {

template <class Real>
void launch(const AssignmentInput& in, int device, Stream stream) {
  const Output out = {in.row_index, in.col_index, in.status};
  in.is_batch ? assign_batch<Real>(in, out, device, stream)
              : assign_ragged<Real>(in, out, device, stream);
}

}  // namespace

extern template void assign_batch<float>(const AssignmentInput&, Output, int, Stream);
extern template void assign_batch<double>(const AssignmentInput&, Output, int, Stream);
extern template void assign_ragged<float>(const AssignmentInput&, Output, int, Stream);
extern template void assign_ragged<double>(const AssignmentInput&, Output, int, Stream);

void assign(const AssignmentInput& in, bool is_double, int device, Stream stream) {
  if (in.problems == 0) return;
  const DeviceGuard guard(device);
  is_double ? launch<double>(in, device, stream) : launch<float>(in, device, stream);
}

int64_t assignment_workspace(int device, int64_t rows, int64_t cols) {
  return solver_workspace(device, rows, cols);
}

}  // namespace detr_fast::cuda
