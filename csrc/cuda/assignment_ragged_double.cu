// Problems of any shapes, with costs in double.
#include "cuda/assignment.cuh"

namespace detr_fast::cuda {

template void assign_ragged<double>(const AssignmentInput&, Output, int, Stream);

}  // namespace detr_fast::cuda
