// Problems of one shape, with costs in float.
#include "cuda/assignment.cuh"

namespace detr_fast::cuda {

template void assign_batch<float>(const AssignmentInput&, Output, int, Stream);

}  // namespace detr_fast::cuda
