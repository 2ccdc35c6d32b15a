// The sampling of the CUDA module.
#include <string>
#include <utility>

#include "bind/cuda.h"
#include "cuda/sampling.h"
#include "math/trilinear.h"

namespace nr {
namespace {

gpu::SampleShape sample_shape(int64_t batch, int64_t channels, std::vector<int64_t> in,
                              std::vector<int64_t> out, bool normalized, bool nearest, int padding,
                              bool align_corners, int storage) {
    gpu::SampleShape shape;
    shape.batch = batch;
    shape.channels = channels;
    shape.in = std::move(in);
    shape.out = std::move(out);
    shape.normalized = normalized;
    shape.nearest = nearest;
    shape.padding = static_cast<Padding>(padding);
    shape.align_corners = align_corners;
    shape.storage = static_cast<gpu::Storage>(storage);
    return shape;
}

// The gradients of a call: addresses of image, coordinates, affine, the fixed-point sums, their largest, and
// scratch.
template <class T>
gpu::SampleGradients<T> gradients(const std::vector<Address>& to) {
    return {pointer<T>(to.at(0)),
            pointer<T>(to.at(1)),
            pointer<T>(to.at(2)),
            {pointer<int64_t>(to.at(3)), pointer<uint64_t>(to.at(4))},
            pointer<void>(to.at(5))};
}

template <class T>
void bind_for(py::module_& m, const std::string& suffix) {
    const auto def = [&](const std::string& name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    def("sample_forward", [](const gpu::SampleShape& shape, Address image, Address coordinates,
                             Address affine, Address out, Address gradient, int device, Address stream) {
        gpu::sample_forward<T>(shape, pointer<void>(image), pointer<T>(coordinates), pointer<T>(affine),
                               pointer<T>(out), pointer<T>(gradient), place(device, stream));
    });
    def("sample_backward",
        [](const gpu::SampleShape& shape, Address grad_out, Address grad_gradient, Address image,
           Address coordinates, Address affine, const std::vector<Address>& to, int device, Address stream) {
            gpu::sample_backward<T>(shape, pointer<T>(grad_out), pointer<T>(grad_gradient),
                                    pointer<void>(image), pointer<T>(coordinates), pointer<T>(affine),
                                    gradients<T>(to), place(device, stream));
        });
    def("sample_twice", [](const gpu::SampleShape& shape, Address tangent_image, Address tangent_coordinates,
                           Address tangent_affine, Address grad_out, Address image, Address coordinates,
                           Address affine, Address grad_grad_out, const std::vector<Address>& to, int device,
                           Address stream) {
        gpu::sample_twice<T>(
            shape, {pointer<T>(tangent_image), pointer<T>(tangent_coordinates), pointer<T>(tangent_affine)},
            pointer<T>(grad_out), pointer<T>(image), pointer<T>(coordinates), pointer<T>(affine),
            pointer<T>(grad_grad_out), gradients<T>(to), place(device, stream));
    });
    const auto labels = [&](const char* type, auto label) {
        using Label = decltype(label);
        def("sample_labels_" + std::string(type),
            [](const gpu::SampleShape& shape, Address image, Address coordinates, Address affine, Address out,
               int device, Address stream) {
                gpu::sample_labels<Label, T>(shape, pointer<Label>(image), pointer<T>(coordinates),
                                             pointer<T>(affine), pointer<Label>(out), place(device, stream));
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

}  // namespace

void bind_cuda_sampling(py::module_& m) {
    py::class_<gpu::SampleShape>(m, "SampleShape", py::module_local()).def(py::init(&sample_shape));
    m.def("sample_scratch", &gpu::sample_scratch);
    bind_for<float>(m, "_f32");
    bind_for<double>(m, "_f64");
}

}  // namespace nr
