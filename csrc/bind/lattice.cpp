// Dense displacement fields: differences on their lattice, and their refinement.
#include <type_traits>
#include <utility>

#include "bind/bind.h"
#include "cpu/ops.h"
#include "math/penalty.h"

namespace nr {

namespace {

LatticeShape lattice_shape(int64_t batch, int64_t channels, std::vector<int64_t> size,
                           std::vector<double> spacing, int scheme) {
    return {batch, channels, std::move(size), std::move(spacing), static_cast<Scheme>(scheme)};
}

}  // namespace

template <class T>
void bind_lattice(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    if constexpr (std::is_same_v<T, float>) {  // the shapes serve both scalar types
        py::class_<LatticeShape>(m, "LatticeShape", py::module_local()).def(py::init(&lattice_shape));
        py::class_<RefineRule>(m, "RefineRule", py::module_local())
            .def(py::init<double, double, double, double, double>());
    }
    def("jacobian_determinant_forward",
        [](const LatticeShape& shape, Address u, Address determinant, int threads) {
            jacobian_determinant_forward<T>(shape, pointer<T>(u), pointer<T>(determinant), threads);
        });
    def("jacobian_determinant_backward", [](const LatticeShape& shape, Address grad, Address u,
                                            Address grad_u, int threads) {
        jacobian_determinant_backward<T>(shape, pointer<T>(grad), pointer<T>(u), pointer<T>(grad_u), threads);
    });
    def("jacobian_loss_forward",
        [](const LatticeShape& shape, int penalty, double threshold, Address u, int threads) {
            const PenaltyTotal total = jacobian_loss_forward<T>(shape, static_cast<Penalty>(penalty),
                                                                threshold, pointer<T>(u), threads);
            return std::make_pair(total.mean, total.folds);
        });
    def("jacobian_loss_backward", [](const LatticeShape& shape, int penalty, double threshold, double scale,
                                     Address u, Address grad_u, int threads) {
        jacobian_loss_backward<T>(shape, static_cast<Penalty>(penalty), threshold, scale, pointer<T>(u),
                                  pointer<T>(grad_u), threads);
    });
    def("jacobian_penalty_forward",
        [](int ndim, int64_t n, int penalty, double threshold, Address j, int threads) {
            const PenaltyTotal total = jacobian_penalty_forward<T>(ndim, n, static_cast<Penalty>(penalty),
                                                                   threshold, pointer<T>(j), threads);
            return std::make_pair(total.mean, total.folds);
        });
    def("jacobian_penalty_backward", [](int ndim, int64_t n, int penalty, double threshold, double scale,
                                        Address j, Address grad_j, int threads) {
        jacobian_penalty_backward<T>(ndim, n, static_cast<Penalty>(penalty), threshold, scale, pointer<T>(j),
                                     pointer<T>(grad_j), threads);
    });
    def("diffusion_loss_forward", [](const LatticeShape& shape, Address u, int threads) {
        return diffusion_loss_forward<T>(shape, pointer<T>(u), threads);
    });
    def("diffusion_loss_backward",
        [](const LatticeShape& shape, double scale, Address u, Address grad_u, int threads) {
            diffusion_loss_backward<T>(shape, scale, pointer<T>(u), pointer<T>(grad_u), threads);
        });
    def("bending_loss_forward", [](const LatticeShape& shape, Address u, int threads) {
        return bending_loss_forward<T>(shape, pointer<T>(u), threads);
    });
    def("bending_loss_backward",
        [](const LatticeShape& shape, double scale, Address u, Address grad_u, int threads) {
            bending_loss_backward<T>(shape, scale, pointer<T>(u), pointer<T>(grad_u), threads);
        });
    def("refine_step", [](const SampleShape& sampling, const LnccShape& similarity, const RefineRule& rule,
                          int64_t batch, double t, Address fixed, Address moving, Address u, Address mean,
                          Address square, Address largest, Address work, Address energy, int threads) {
        refine_step<T>(sampling, similarity, rule, batch, t, pointer<T>(fixed), pointer<T>(moving),
                       pointer<T>(u), pointer<T>(mean), pointer<T>(square), pointer<T>(largest),
                       pointer<T>(work), pointer<double>(energy), threads);
    });
}

template void bind_lattice<float>(py::module_&, const std::string&);
template void bind_lattice<double>(py::module_&, const std::string&);

}  // namespace nr
