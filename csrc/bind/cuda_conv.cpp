// Two small convolutions of the CUDA module.
#include <string>
#include <utility>

#include "bind/cuda.h"
#include "cuda/conv.h"

namespace nr {
namespace {

gpu::ConvShape conv_shape(int64_t batch, int64_t in, int64_t hidden, int64_t out, std::vector<int64_t> size) {
    return {batch, in, hidden, out, std::move(size)};
}

template <class T>
void bind_for(py::module_& m, const std::string& suffix) {
    m.def(("conv_relu_conv_forward" + suffix).c_str(),
          [](const gpu::ConvShape& shape, Address x, Address w1, Address b1, Address w2, Address b2,
             Address y, int device, Address stream) {
              gpu::conv_relu_conv_forward<T>(shape, pointer<T>(x), pointer<T>(w1), pointer<T>(b1),
                                             pointer<T>(w2), pointer<T>(b2), pointer<T>(y),
                                             place(device, stream));
          },
          Released());
    m.def(
        ("conv_relu_conv_backward" + suffix).c_str(),
        [](const gpu::ConvShape& shape, Address grad_y, Address x, Address w1, Address b1, Address w2,
           Address grad_x, const std::array<Address, 4>& grads, Address scratch, int device, Address stream) {
            gpu::conv_relu_conv_backward<T>(
                shape, pointer<T>(grad_y), pointer<T>(x), pointer<T>(w1), pointer<T>(b1), pointer<T>(w2),
                pointer<T>(grad_x),
                {pointer<T>(grads[0]), pointer<T>(grads[1]), pointer<T>(grads[2]), pointer<T>(grads[3])},
                pointer<void>(scratch), place(device, stream));
        },
        Released());
}

}  // namespace

void bind_cuda_conv(py::module_& m) {
    py::class_<gpu::ConvShape>(m, "ConvShape", py::module_local()).def(py::init(&conv_shape));
    m.def("conv_relu_conv_scratch", &gpu::conv_relu_conv_scratch);
    bind_for<float>(m, "_f32");
    bind_for<double>(m, "_f64");
}

}  // namespace nr
