#include <type_traits>
#include <utility>

#include "bind/bind.h"
#include "cpu/box_mean.h"
#include "cpu/ops.h"
#include "math/lncc.h"

namespace nr {

namespace {

LnccShape lncc_shape(int64_t batch, int64_t channels, std::vector<int64_t> size, std::vector<int64_t> window,
                     bool valid, int64_t mask_channels, bool squared, int eps_mode, double eps,
                     double numerator_eps, double flat_tol, bool zero_rule) {
    LnccShape shape;
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

SsimShape ssim_shape(int64_t batch, int64_t channels, std::vector<int64_t> size, std::vector<int64_t> window,
                     std::vector<double> weights, double c1, double c2, bool valid) {
    return {batch, channels, std::move(size), std::move(window), std::move(weights), c1, c2, valid};
}

BoxShape box_shape(int64_t channels, std::vector<int64_t> size, std::vector<int64_t> window, bool adjoint) {
    return {channels, std::move(size), std::move(window), adjoint};
}

}  // namespace

template <class T>
void bind_image(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    if constexpr (std::is_same_v<T, float>) {  // the shapes serve both scalar types
        py::class_<LnccShape>(m, "LnccShape", py::module_local()).def(py::init(&lncc_shape));
        py::class_<SsimShape>(m, "SsimShape", py::module_local()).def(py::init(&ssim_shape));
        py::class_<BoxShape>(m, "BoxShape", py::module_local()).def(py::init(&box_shape));
    }
    bind_sampling<T>(m, suffix);
    def("box_mean", [](const BoxShape& shape, Address image, Address out, int threads) {
        box_mean<T>(shape, pointer<T>(image), pointer<T>(out), threads);
    });
    def("lncc_forward", [](const LnccShape& shape, Address fixed, Address warped, Address mask,
                           Address values, const std::vector<Address>& adjoints, int threads) {
        const LnccTotal total =
            lncc_forward<T>(shape, pointer<T>(fixed), pointer<T>(warped), pointer<uint8_t>(mask),
                            pointer<T>(values), pointers<T>(adjoints), threads);
        return std::make_pair(total.sum, total.count);
    });
    def("lncc_backward", [](const LnccShape& shape, Address upstream, double scale, Address fixed,
                            Address warped, Address mask, const std::vector<Address>& adjoints,
                            Address grad_fixed, Address grad_warped, int threads) {
        lncc_backward<T>(shape, pointer<T>(upstream), scale, pointer<T>(fixed), pointer<T>(warped),
                         pointer<uint8_t>(mask), pointers<const T>(adjoints), pointer<T>(grad_fixed),
                         pointer<T>(grad_warped), threads);
    });
    def("lncc_gradient", [](const LnccShape& shape, Address upstream, double scale, Address fixed,
                            Address warped, Address mask, Address grad_fixed, Address grad_warped,
                            int threads) {
        const LnccTotal total = lncc_gradient<T>(shape, pointer<T>(upstream), scale, pointer<T>(fixed),
                                                 pointer<T>(warped), pointer<uint8_t>(mask),
                                                 pointer<T>(grad_fixed), pointer<T>(grad_warped), threads);
        return std::make_pair(total.sum, total.count);
    });
    def("ssim_forward", [](const SsimShape& shape, Address fixed, Address warped, Address values,
                           const std::vector<Address>& adjoints, int threads) {
        return ssim_forward<T>(shape, pointer<T>(fixed), pointer<T>(warped), pointer<T>(values),
                               pointers<T>(adjoints), threads);
    });
    def("ssim_backward",
        [](const SsimShape& shape, Address upstream, double scale, Address fixed, Address warped,
           const std::vector<Address>& adjoints, Address grad_fixed, Address grad_warped, int threads) {
            ssim_backward<T>(shape, pointer<T>(upstream), scale, pointer<T>(fixed), pointer<T>(warped),
                             pointers<const T>(adjoints), pointer<T>(grad_fixed), pointer<T>(grad_warped),
                             threads);
        });
}

template void bind_image<float>(py::module_&, const std::string&);
template void bind_image<double>(py::module_&, const std::string&);

}  // namespace nr
