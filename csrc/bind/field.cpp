#include "bind/bind.h"
#include "cpu/ops.h"
#include "math/activation.h"

namespace nr {

namespace {

GridShape grid_shape(int ndim, std::vector<int> resolutions, int features, int64_t table_size, bool smooth) {
    return {ndim, features, std::move(resolutions), table_size, smooth};
}

}  // namespace

void bind_shapes(py::module_& m) {
    py::class_<GridShape>(m, "GridShape", py::module_local()).def(py::init(&grid_shape));
    py::class_<FieldShape> shape(m, "FieldShape", py::module_local());
    shape.def(py::init<>());
    shape.def_readwrite("ndim", &FieldShape::ndim)
        .def_readwrite("out", &FieldShape::out)
        .def_readwrite("grid", &FieldShape::grid)
        .def_readwrite("frequencies", &FieldShape::frequencies)
        .def_readwrite("fourier_scale", &FieldShape::fourier_scale)
        .def_readwrite("raw", &FieldShape::raw)
        .def_readwrite("encoded", &FieldShape::encoded)
        .def_readwrite("latent", &FieldShape::latent)
        .def_readwrite("latent_per_point", &FieldShape::latent_per_point)
        .def_readwrite("volume_channels", &FieldShape::volume_channels)
        .def_readwrite("volume_size", &FieldShape::volume_size)
        .def_readwrite("widths", &FieldShape::widths)
        .def_readwrite("gate_widths", &FieldShape::gate_widths)
        .def_readwrite("omegas", &FieldShape::omegas)
        .def_readwrite("gate_omegas", &FieldShape::gate_omegas)
        .def_readwrite("steps", &FieldShape::steps)
        .def_readwrite("time", &FieldShape::time)
        .def_readwrite("rk4", &FieldShape::rk4)
        .def_readwrite("bfloat16", &FieldShape::bfloat16);
    const auto number = [&](const char* name, auto FieldShape::* member) {
        using Number = std::remove_reference_t<decltype(std::declval<FieldShape>().*member)>;
        shape.def_property(
            name, [member](const FieldShape& s) { return static_cast<int>(s.*member); },
            [member](FieldShape& s, int value) { s.*member = static_cast<Number>(value); });
    };
    number("encoding", &FieldShape::encoding);
    number("activation", &FieldShape::activation);
    number("skip", &FieldShape::skip);
    number("output", &FieldShape::output);
}

template <class T>
void bind_field(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    def("hash_encode_forward",
        [](const GridShape& grid, int64_t n, Address x, Address table, Address encoded, int threads) {
            hash_encode_forward<T>(grid, n, pointer<T>(x), pointer<T>(table), pointer<T>(encoded), threads);
        });
    def("hash_encode_backward", [](const GridShape& grid, int64_t n, Address x, Address table,
                                   Address grad_encoded, Address grad_x, Address grad_table, int threads) {
        hash_encode_backward<T>(grid, n, pointer<T>(x), pointer<T>(table), pointer<T>(grad_encoded),
                                pointer<T>(grad_x), pointer<T>(grad_table), threads);
    });
    def("fourier_encode_forward", [](int ndim, int frequencies, double scale, int64_t n, Address x, Address b,
                                     Address encoded, int threads) {
        fourier_encode_forward<T>(ndim, frequencies, scale, n, pointer<T>(x), pointer<T>(b),
                                  pointer<T>(encoded), threads);
    });
    def("fourier_encode_backward", [](int ndim, int frequencies, double scale, int64_t n, Address x,
                                      Address b, Address grad_encoded, Address grad_x, Address grad_b,
                                      int threads) {
        fourier_encode_backward<T>(ndim, frequencies, scale, n, pointer<T>(x), pointer<T>(b),
                                   pointer<T>(grad_encoded), pointer<T>(grad_x), pointer<T>(grad_b), threads);
    });
    def("field_kept",
        [](const FieldShape& shape, int64_t n, bool jet) { return field_kept<T>(shape, n, jet); });
    def("field_forward",
        [](const FieldShape& shape, int64_t n, Address x, const std::vector<Address>& tensors, Address kept,
           Address y, Address jacobian, int threads) {
            field_forward<T>(shape, n, pointer<T>(x), pointers<const T>(tensors), pointer<T>(kept),
                             pointer<T>(y), pointer<T>(jacobian), threads);
        });
    def("field_backward",
        [](const FieldShape& shape, int64_t n, Address x, const std::vector<Address>& tensors, Address kept,
           Address grad_y, Address grad_jacobian, const std::vector<Address>& grads, int threads) {
            field_backward<T>(shape, n, pointer<T>(x), pointers<const T>(tensors), pointer<T>(kept),
                              pointer<T>(grad_y), pointer<T>(grad_jacobian), pointers<T>(grads), threads);
        });
    def("gradient_inverse_consistency",
        [](const FieldShape& shape, int64_t n, Address x, const std::vector<Address>& there,
           const std::vector<Address>& back, const std::vector<Address>& grads_there,
           const std::vector<Address>& grads_back, int threads) {
            return gradient_inverse_consistency<T>(shape, n, pointer<T>(x), pointers<const T>(there),
                                                   pointers<const T>(back), pointers<T>(grads_there),
                                                   pointers<T>(grads_back), threads);
        });
    def("table_adam",
        [](int64_t rows, int64_t features, double lr, double beta1, double beta2, double eps, Address table,
           Address grad, Address mean, Address square, Address steps, int threads) {
            table_adam<T>(rows, features, lr, beta1, beta2, eps, pointer<T>(table), pointer<T>(grad),
                          pointer<T>(mean), pointer<T>(square), pointer<int32_t>(steps), threads);
        });
}

template void bind_field<float>(py::module_&, const std::string&);
template void bind_field<double>(py::module_&, const std::string&);

}  // namespace nr
