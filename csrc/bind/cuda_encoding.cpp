// The encodings of the CUDA module.
#include <string>

#include "bind/cuda.h"
#include "cuda/encoding.h"

namespace nr {
namespace {

template <class T>
gpu::Upstream<T> upstream(Address data, int rows, int64_t row, int64_t feature, int64_t point) {
    return {pointer<T>(data), rows, row, feature, point};
}

template <class T>
void bind_for(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    def("grid_encode", [](const gpu::Grid& grid, int64_t n, Address x, Address table, Address encoded,
                          int device, Address stream) {
        gpu::grid_encode<T>(grid, n, pointer<T>(x), pointer<T>(table), pointer<T>(encoded),
                            place(device, stream));
    });
    def("grid_scatter", [](const gpu::Grid& grid, int64_t n, Address x, Address grad, int rows, int64_t row,
                           int64_t feature, int64_t point, Address grad_table, Address fixed_point,
                           Address largest, int device, Address stream) {
        gpu::grid_scatter<T>(grid, n, pointer<T>(x), upstream<T>(grad, rows, row, feature, point),
                             pointer<T>(grad_table), pointer<int64_t>(fixed_point),
                             pointer<uint64_t>(largest), place(device, stream));
    });
    def("grid_gradient_x",
        [](const gpu::Grid& grid, int64_t n, Address x, Address table, Address grad, int rows, int64_t row,
           int64_t feature, int64_t point, Address grad_x, bool add, int device, Address stream) {
            gpu::grid_gradient_x<T>(grid, n, pointer<T>(x), pointer<T>(table),
                                    upstream<T>(grad, rows, row, feature, point), pointer<T>(grad_x), add,
                                    place(device, stream));
        });
    def("fourier_encode_forward", [](const gpu::FourierShape& shape, int64_t n, Address x, Address matrix,
                                     Address encoded, int device, Address stream) {
        gpu::fourier_encode_forward<T>(shape, n, pointer<T>(x), pointer<T>(matrix), pointer<T>(encoded),
                                       place(device, stream));
    });
    def("fourier_encode_backward",
        [](const gpu::FourierShape& shape, int64_t n, Address x, Address matrix, Address grad, Address grad_x,
           Address grad_matrix, Address scratch, int device, Address stream) {
            gpu::fourier_encode_backward<T>(shape, n, pointer<T>(x), pointer<T>(matrix), pointer<T>(grad),
                                            pointer<T>(grad_x), pointer<T>(grad_matrix),
                                            pointer<void>(scratch), place(device, stream));
        });
}

}  // namespace

void bind_cuda_encoding(py::module_& m) {
    py::class_<gpu::Grid>(m, "Grid", py::module_local()).def_readonly("entries", &gpu::Grid::entries);
    py::class_<gpu::FourierShape>(m, "FourierShape", py::module_local())
        .def(py::init([](int ndim, int frequencies, double scale) {
            return gpu::FourierShape{ndim, frequencies, scale};
        }));
    m.def("feature_grid", &gpu::feature_grid);
    m.def("volume_grid", &gpu::volume_grid);
    m.def("fourier_encode_scratch", &gpu::fourier_encode_scratch);
    bind_for<float>(m, "_f32");
    bind_for<double>(m, "_f64");
}

}  // namespace nr
