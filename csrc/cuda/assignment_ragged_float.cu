// Problems of any shapes, with costs in float.
#include "cuda/assignment.cuh"

namespace detr_fast::cuda {

template void assign_ragged<float>(const AssignmentInput&, Output, int, Stream);

}  // namespace detr_fast::cuda
