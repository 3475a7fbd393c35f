// Problems of one shape, with costs in double.
#include "cuda/assignment.cuh"

namespace detr_fast::cuda {

template void assign_batch<double>(const AssignmentInput&, Output, int, Stream);

}  // namespace detr_fast::cuda
