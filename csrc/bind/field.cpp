#include "bind/bind.h"
#include "cpu/ops.h"

namespace nr {

namespace {

FieldShape field_shape(int ndim, int encoding, std::vector<int> resolutions, int features, int64_t table_size,
                       int frequencies, double fourier_scale, std::vector<int> widths, int activation,
                       std::vector<double> omegas) {
    FieldShape shape;
    shape.ndim = ndim;
    shape.encoding = static_cast<Encoding>(encoding);
    shape.grid = {ndim, features, std::move(resolutions), table_size};
    shape.frequencies = frequencies;
    shape.fourier_scale = fourier_scale;
    shape.widths = std::move(widths);
    shape.activation = activation;
    shape.omegas = std::move(omegas);
    return shape;
}

}  // namespace

void bind_shapes(py::module_& m) {
    py::class_<FieldShape>(m, "FieldShape", py::module_local()).def(py::init(&field_shape));
}

template <class T>
void bind_field(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    def("hash_encode_forward", [](int ndim, std::vector<int> resolutions, int features, int64_t table_size,
                                  int64_t n, Address x, Address table, Address encoded, int threads) {
        hash_encode_forward<T>({ndim, features, std::move(resolutions), table_size}, n, pointer<T>(x),
                               pointer<T>(table), pointer<T>(encoded), threads);
    });
    def("hash_encode_backward",
        [](int ndim, std::vector<int> resolutions, int features, int64_t table_size, int64_t n, Address x,
           Address table, Address grad_encoded, Address grad_x, Address grad_table, int threads) {
            hash_encode_backward<T>({ndim, features, std::move(resolutions), table_size}, n, pointer<T>(x),
                                    pointer<T>(table), pointer<T>(grad_encoded), pointer<T>(grad_x),
                                    pointer<T>(grad_table), threads);
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
    def("field_forward", [](const FieldShape& shape, int64_t n, Address x, const std::vector<Address>& params,
                            Address y, int threads) {
        field_forward<T>(shape, n, pointer<T>(x), pointers<const T>(params), pointer<T>(y), threads);
    });
    def("field_backward",
        [](const FieldShape& shape, int64_t n, Address x, const std::vector<Address>& params, Address grad_y,
           Address grad_x, const std::vector<Address>& grad_params, int threads) {
            field_backward<T>(shape, n, pointer<T>(x), pointers<const T>(params), pointer<T>(grad_y),
                              pointer<T>(grad_x), pointers<T>(grad_params), threads);
        });
}

template void bind_field<float>(py::module_&, const std::string&);
template void bind_field<double>(py::module_&, const std::string&);

}  // namespace nr
