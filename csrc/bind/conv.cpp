// Two small convolutions as one op.
#include <array>
#include <type_traits>
#include <utility>

#include "bind/bind.h"
#include "cpu/ops.h"

namespace nr {

namespace {

ConvShape conv_shape(int64_t batch, int64_t in, int64_t hidden, int64_t out, std::vector<int64_t> size) {
    return {batch, in, hidden, out, std::move(size)};
}

}  // namespace

template <class T>
void bind_conv(py::module_& m, const std::string& suffix) {
    if constexpr (std::is_same_v<T, float>)  // the shape serves both scalar types
        py::class_<ConvShape>(m, "ConvShape", py::module_local()).def(py::init(&conv_shape));
    m.def(("conv_relu_conv_forward" + suffix).c_str(),
          [](const ConvShape& shape, Address x, Address w1, Address b1, Address w2, Address b2, Address y,
             int threads) {
              conv_relu_conv_forward<T>(shape, pointer<T>(x), pointer<T>(w1), pointer<T>(b1), pointer<T>(w2),
                                        pointer<T>(b2), pointer<T>(y), threads);
          },
          Released());
    m.def(("conv_relu_conv_backward" + suffix).c_str(),
          [](const ConvShape& shape, Address grad_y, Address x, Address w1, Address b1, Address w2,
             Address grad_x, const std::array<Address, 4>& grads, int threads) {
              conv_relu_conv_backward<T>(
                  shape, pointer<T>(grad_y), pointer<T>(x), pointer<T>(w1), pointer<T>(b1), pointer<T>(w2),
                  pointer<T>(grad_x),
                  {pointer<T>(grads[0]), pointer<T>(grads[1]), pointer<T>(grads[2]), pointer<T>(grads[3])},
                  threads);
          },
          Released());
}

template void bind_conv<float>(py::module_&, const std::string&);
template void bind_conv<double>(py::module_&, const std::string&);

}  // namespace nr
