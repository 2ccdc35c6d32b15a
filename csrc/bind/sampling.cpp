#include <type_traits>
#include <utility>

#include "bind/bind.h"
#include "cpu/ops.h"
#include "math/trilinear.h"

namespace nr {

namespace {

SampleShape sample_shape(int64_t batch, int64_t channels, std::vector<int64_t> in, std::vector<int64_t> out,
                         bool normalized, bool nearest, int padding, bool align_corners, int storage) {
    SampleShape shape;
    shape.batch = batch;
    shape.channels = channels;
    shape.in = std::move(in);
    shape.out = std::move(out);
    shape.normalized = normalized;
    shape.nearest = nearest;
    shape.padding = static_cast<Padding>(padding);
    shape.align_corners = align_corners;
    shape.storage = static_cast<Storage>(storage);
    return shape;
}

}  // namespace

template <class T>
void bind_sampling(py::module_& m, const std::string& suffix) {
    const auto def = [&](const std::string& name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    if constexpr (std::is_same_v<T, float>)  // it serves both scalar types
        py::class_<SampleShape>(m, "SampleShape", py::module_local()).def(py::init(&sample_shape));
    def("sample_forward", [](const SampleShape& shape, Address image, Address coordinates, Address affine,
                             Address out, Address gradient, int threads) {
        sample_forward<T>(shape, pointer<void>(image), pointer<T>(coordinates), pointer<T>(affine),
                          pointer<T>(out), pointer<T>(gradient), threads);
    });
    def("sample_backward", [](const SampleShape& shape, Address grad_out, Address grad_gradient,
                              Address image, Address coordinates, Address affine, Address grad_image,
                              Address grad_coordinates, Address grad_affine, int threads) {
        sample_backward<T>(shape, pointer<T>(grad_out), pointer<T>(grad_gradient), pointer<void>(image),
                           pointer<T>(coordinates), pointer<T>(affine), pointer<T>(grad_image),
                           pointer<T>(grad_coordinates), pointer<T>(grad_affine), threads);
    });
    def("sample_twice", [](const SampleShape& shape, Address tangent_image, Address tangent_coordinates,
                           Address tangent_affine, Address grad_out, Address image, Address coordinates,
                           Address affine, Address grad_grad_out, Address grad_image,
                           Address grad_coordinates, Address grad_affine, int threads) {
        const SampleTangent<T> tangent = {pointer<T>(tangent_image), pointer<T>(tangent_coordinates),
                                          pointer<T>(tangent_affine)};
        sample_twice<T>(shape, tangent, pointer<T>(grad_out), pointer<T>(image), pointer<T>(coordinates),
                        pointer<T>(affine), pointer<T>(grad_grad_out), pointer<T>(grad_image),
                        pointer<T>(grad_coordinates), pointer<T>(grad_affine), threads);
    });
    const auto labels = [&](const char* type, auto label) {
        using Label = decltype(label);
        def("sample_labels_" + std::string(type),
            [](const SampleShape& shape, Address image, Address coordinates, Address affine, Address out,
               int threads) {
                sample_labels<Label, T>(shape, pointer<Label>(image), pointer<T>(coordinates),
                                        pointer<T>(affine), pointer<Label>(out), threads);
            });
    };
    labels("u8", uint8_t{});
    labels("i8", int8_t{});
    labels("i16", int16_t{});
    labels("i32", int32_t{});
    labels("i64", int64_t{});
    labels("f32", float{});
    labels("f64", double{});
}

template void bind_sampling<float>(py::module_&, const std::string&);
template void bind_sampling<double>(py::module_&, const std::string&);

}  // namespace nr
