// detr_fast._C.cuda: the launchers of CUDA kernels. As in bindings.cpp, callers own all memory and
// check their arguments; nothing here waits for the device.
#include <string>

#include "bindings.h"
#include "cuda/ops.h"

namespace py = pybind11;

namespace detr_fast {
namespace {

void match(const Addresses& logits, const Addresses& boxes,
           const std::tuple<int64_t, int64_t, int64_t>& shape, const std::tuple<int, int>& dtypes,
           Address labels, Address target_boxes, int64_t targets,
           const std::vector<int64_t>& counts, Address device_offsets, int64_t most_targets,
           const CostOptions& cost, bool nonfinite_last, Address scratch, Address query_index,
           Address pairs, Address faults, Address memory, int device, cuda::Stream stream) {
  py::gil_scoped_release release;
  const std::vector<const void*> logits_at = pointers(logits), boxes_at = pointers(boxes);
  cuda::MatchInput in = {};
  in.logits = logits_at.data();
  in.boxes = boxes_at.data();
  in.logits_dtype = static_cast<Dtype>(std::get<0>(dtypes));
  in.boxes_dtype = static_cast<Dtype>(std::get<1>(dtypes));
  in.layers = static_cast<int64_t>(logits.size());
  std::tie(in.images, in.queries, in.classes) = shape;
  in.labels = at<const int64_t>(labels);
  in.target_boxes = at<const float>(target_boxes);
  in.targets = targets;
  in.counts = device_offsets ? nullptr : counts.data();
  in.device_offsets = at<const int32_t>(device_offsets);
  in.most_targets = most_targets;
  in.options = pair_cost_options(cost);
  in.nonfinite_last = nonfinite_last;
  in.cost = at<float>(scratch);
  in.query_index = at<int64_t>(query_index);
  in.pairs = at<int64_t>(pairs);
  in.faults = at<uint64_t>(faults);
  in.memory = at<void>(memory);
  cuda::match(in, device, stream);
}

void linear_sum_assignment(int64_t problems, const Addresses& cost,
                           const std::vector<int32_t>& rows, const std::vector<int32_t>& cols,
                           bool is_double, const std::vector<uint8_t>& transposed,
                           Address row_index, Address col_index, Address status, Address memory,
                           int device, cuda::Stream stream) {
  py::gil_scoped_release release;
  const std::vector<const void*> cost_at = pointers(cost);
  cuda::AssignmentInput in = {};
  in.problems = problems;
  in.is_batch = static_cast<int64_t>(cost.size()) != problems;
  in.cost = cost_at.data();
  in.rows = rows.data();
  in.cols = cols.data();
  in.transposed = reinterpret_cast<const bool*>(transposed.data());
  in.row_index = at<int64_t>(row_index);
  in.col_index = at<int64_t>(col_index);
  in.status = at<int32_t>(status);
  in.memory = at<void>(memory);
  cuda::assign(in, is_double, device, stream);
}

}  // namespace

void define_cuda(py::module_ m) {
  m.doc() = "Launchers of CUDA kernels: they take device addresses, a device index and a stream.";
  m.def("driver_version", &cuda::driver_version,
        "The newest CUDA that the installed driver runs, 1000 * major + 10 * minor; 0: no driver.");
  m.def("assignment_workspace", &cuda::assignment_workspace, py::arg("device"), py::arg("rows"),
        py::arg("cols"),
        "Bytes of device memory per problem that an assignment of up to rows x cols needs.");
  m.def("match", &match, py::arg("logits"), py::arg("boxes"), py::arg("shape"), py::arg("dtypes"),
        py::arg("labels"), py::arg("target_boxes"), py::arg("targets"), py::arg("counts"),
        py::arg("device_offsets"), py::arg("most_targets"), py::arg("cost"),
        py::arg("nonfinite_last"), py::arg("scratch"), py::arg("query_index"), py::arg("pairs"),
        py::arg("faults"), py::arg("memory"), py::arg("device"), py::arg("stream"),
        "logits, boxes: one device address per layer, contiguous [B, N, C] and [B, N, 4]; shape: "
        "(B, N, C); dtypes of both: 0 float32, 1 float16, 2 bfloat16; labels int64 [T] and "
        "target_boxes float32 [T, 4] of all images; targets: T; counts: M of each image, unused "
        "if device_offsets, int32 [B + 1], is not 0; most_targets: the largest number of one "
        "image; cost: as for _C.match; scratch: float32 [L * T * N]; query_index: int64 [L, T], "
        "written; pairs: int64, written like _C.match's index, or 0; faults: uint64 [L * B], "
        "shared by host and device; memory: [L * B * assignment_workspace(device, min(N, most), "
        "max(N, most))].");
  m.def("linear_sum_assignment", &linear_sum_assignment, py::arg("problems"), py::arg("cost"),
        py::arg("rows"), py::arg("cols"), py::arg("is_double"), py::arg("transposed"),
        py::arg("row_index"), py::arg("col_index"), py::arg("status"), py::arg("memory"),
        py::arg("device"), py::arg("stream"),
        "problems: P; cost: one device address per problem, contiguous [rows, cols], rows <= cols, "
        "float64 if is_double, else float32; transposed: 1 for each problem whose columns are the "
        "caller's rows. For a batch [P, rows, cols], cost, rows, cols and transposed have one "
        "entry. row_index, col_index: int64 [sum of rows], written, as the caller's indices in "
        "order of the caller's rows; status: int32 [P], written; memory: [P * "
        "assignment_workspace(device, most rows, most cols)].");
  define_cuda_boxes(m);
}

}  // namespace detr_fast
