// The CUDA module: addresses on the device, sizes and the stream come in as integers.
#include <string>
#include <utility>

#include "bind/cuda.h"
#include "cuda/box_mean.h"
#include "cuda/ops.h"
#include "math/lncc.h"

namespace nr {
namespace {

gpu::LnccShape lncc_shape(int64_t batch, int64_t channels, std::vector<int64_t> size,
                          std::vector<int64_t> window, bool valid, int64_t mask_channels, bool squared,
                          int eps_mode, double eps, double numerator_eps, double flat_tol, bool zero_rule) {
    gpu::LnccShape shape;
    shape.batch = batch;
    shape.channels = channels;
    shape.size = std::move(size);
    shape.window = std::move(window);
    shape.valid = valid;
    shape.mask_channels = mask_channels;
    shape.squared = squared;
    shape.eps_mode = static_cast<EpsMode>(eps_mode);
    shape.eps = eps;
    shape.numerator_eps = numerator_eps;
    shape.flat_tol = flat_tol;
    shape.zero_rule = zero_rule;
    return shape;
}

gpu::SsimShape ssim_shape(int64_t batch, int64_t channels, std::vector<int64_t> size,
                          std::vector<int64_t> window, std::vector<double> weights, double c1, double c2,
                          bool valid) {
    return {batch, channels, std::move(size), std::move(window), std::move(weights), c1, c2, valid};
}

gpu::BoxShape box_shape(int64_t channels, std::vector<int64_t> size, std::vector<int64_t> window,
                        bool adjoint) {
    return {channels, std::move(size), std::move(window), adjoint};
}

template <class T>
void bind_windows(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    def("box_mean", [](const gpu::BoxShape& shape, Address image, Address out, Address scratch, int device,
                       Address stream) {
        gpu::box_mean<T>(shape, pointer<T>(image), pointer<T>(out), pointer<void>(scratch),
                         place(device, stream));
    });
    def("lncc_forward", [](const gpu::LnccShape& shape, Address fixed, Address warped, Address mask,
                           Address values, Address mean, Address count, const std::vector<Address>& adjoints,
                           Address scratch, int device, Address stream) {
        gpu::lncc_forward<T>(shape, pointer<T>(fixed), pointer<T>(warped), pointer<uint8_t>(mask),
                             pointer<T>(values), pointer<T>(mean), pointer<double>(count),
                             pointers<T>(adjoints), pointer<void>(scratch), place(device, stream));
    });
    def("lncc_backward",
        [](const gpu::LnccShape& shape, Address upstream, bool of_mean, Address count, Address fixed,
           Address warped, Address mask, const std::vector<Address>& adjoints, Address grad_fixed,
           Address grad_warped, Address scratch, int device, Address stream) {
            gpu::lncc_backward<T>(shape, pointer<T>(upstream), of_mean, pointer<double>(count),
                                  pointer<T>(fixed), pointer<T>(warped), pointer<uint8_t>(mask),
                                  pointers<const T>(adjoints), pointer<T>(grad_fixed),
                                  pointer<T>(grad_warped), pointer<void>(scratch), place(device, stream));
        });
    def("ssim_forward",
        [](const gpu::SsimShape& shape, Address fixed, Address warped, Address values, Address mean,
           const std::vector<Address>& adjoints, Address scratch, int device, Address stream) {
            gpu::ssim_forward<T>(shape, pointer<T>(fixed), pointer<T>(warped), pointer<T>(values),
                                 pointer<T>(mean), pointers<T>(adjoints), pointer<void>(scratch),
                                 place(device, stream));
        });
    def("ssim_backward", [](const gpu::SsimShape& shape, Address upstream, bool of_mean, Address fixed,
                            Address warped, const std::vector<Address>& adjoints, Address grad_fixed,
                            Address grad_warped, Address scratch, int device, Address stream) {
        gpu::ssim_backward<T>(shape, pointer<T>(upstream), of_mean, pointer<T>(fixed), pointer<T>(warped),
                              pointers<const T>(adjoints), pointer<T>(grad_fixed), pointer<T>(grad_warped),
                              pointer<void>(scratch), place(device, stream));
    });
}

}  // namespace
}  // namespace nr

PYBIND11_MODULE(NR_MODULE_NAME, m) {
    nr::py::class_<nr::gpu::LnccShape>(m, "LnccShape", nr::py::module_local())
        .def(nr::py::init(&nr::lncc_shape));
    nr::py::class_<nr::gpu::SsimShape>(m, "SsimShape", nr::py::module_local())
        .def(nr::py::init(&nr::ssim_shape));
    nr::py::class_<nr::gpu::BoxShape>(m, "BoxShape", nr::py::module_local())
        .def(nr::py::init(&nr::box_shape));
    m.def("box_mean_scratch", &nr::gpu::box_mean_scratch);
    m.def("ssim_forward_scratch", &nr::gpu::ssim_forward_scratch);
    m.def("ssim_backward_scratch", &nr::gpu::ssim_backward_scratch);
    m.def("lncc_forward_scratch", &nr::gpu::lncc_forward_scratch);
    m.def("lncc_backward_scratch", &nr::gpu::lncc_backward_scratch);
    nr::bind_cuda_conv(m);
    nr::bind_cuda_encoding(m);
    nr::bind_cuda_field(m);
    nr::bind_cuda_lattice(m);
    nr::bind_cuda_sampling(m);
    nr::bind_windows<float>(m, "_f32");
    nr::bind_windows<double>(m, "_f64");
}
