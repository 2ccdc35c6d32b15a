// The field of the CUDA module.
#include <string>
#include <utility>

#include "bind/cuda.h"
#include "cuda/field.h"

namespace nr {
namespace {

template <class T>
void bind_for(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    def("field_forward",
        [](const gpu::FieldShape& shape, int64_t n, Address x, const std::vector<Address>& tensors,
           int64_t latent_rows, Address y, Address jacobian, Address scratch, int device, Address stream) {
            gpu::field_forward<T>(shape, n, pointer<T>(x), {pointers<const T>(tensors), latent_rows},
                                  pointer<T>(y), pointer<T>(jacobian), pointer<void>(scratch),
                                  place(device, stream));
        });
    def("field_backward", [](const gpu::FieldShape& shape, int64_t begin, int64_t chunk, int64_t n, Address x,
                             const std::vector<Address>& tensors, int64_t latent_rows, Address grad_y,
                             Address grad_jacobian, Address grad_x, Address grad_grid, Address grad_volume,
                             const std::vector<Address>& to, Address scratch, int device, Address stream) {
        gpu::field_backward<T>(shape, begin, chunk, n, pointer<T>(x),
                               {pointers<const T>(tensors), latent_rows},
                               {pointer<T>(grad_y), pointer<T>(grad_jacobian), pointer<T>(grad_x),
                                pointer<T>(grad_grid), pointer<T>(grad_volume)},
                               {pointers<T>(to), latent_rows}, pointer<void>(scratch), place(device, stream));
    });
}

}  // namespace

void bind_cuda_field(py::module_& m) {
    using gpu::FieldShape;
    py::class_<FieldShape>(m, "FieldShape", py::module_local())
        .def(py::init<>())
        .def_readwrite("ndim", &FieldShape::ndim)
        .def_readwrite("out", &FieldShape::out)
        .def_readwrite("grid", &FieldShape::grid)
        .def_readwrite("frequencies", &FieldShape::frequencies)
        .def_readwrite("scale", &FieldShape::scale)
        .def_readwrite("raw", &FieldShape::raw)
        .def_readwrite("latent", &FieldShape::latent)
        .def_readwrite("volume_size", &FieldShape::volume_size)
        .def_readwrite("volume_channels", &FieldShape::volume_channels)
        .def_readwrite("hidden", &FieldShape::hidden)
        .def_readwrite("activation", &FieldShape::activation)
        .def_readwrite("omega", &FieldShape::omega)
        .def_readwrite("gate_omega", &FieldShape::gate_omega)
        .def_readwrite("bfloat16", &FieldShape::bfloat16)
        .def("choose", [](FieldShape& shape, int encoding, int skip, int output) {
            shape.encoding = static_cast<gpu::Encoding>(encoding);
            shape.skip = static_cast<gpu::Skip>(skip);
            shape.output = static_cast<gpu::Output>(output);
        });
    m.def("field_forward_scratch", &gpu::field_forward_scratch);
    m.def("field_backward_scratch", &gpu::field_backward_scratch);
    bind_for<float>(m, "_f32");
    bind_for<double>(m, "_f64");
}

}  // namespace nr
