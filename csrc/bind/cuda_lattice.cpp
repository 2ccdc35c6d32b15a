// Dense fields of the CUDA module: differences on their lattice, and steps of Adam.
#include <string>
#include <utility>

#include "bind/cuda.h"
#include "cuda/lattice.h"
#include "cuda/refine.h"

namespace nr {
namespace {

gpu::LatticeShape lattice_shape(int64_t batch, int64_t channels, std::vector<int64_t> size,
                                std::vector<double> spacing, int scheme) {
    return {batch, channels, std::move(size), std::move(spacing), static_cast<gpu::Scheme>(scheme)};
}

gpu::RefineShape refine_shape(int64_t batch, int64_t channels, std::vector<int64_t> size,
                              std::vector<int64_t> in, std::vector<int64_t> window, double regularisation,
                              double lr, double beta1, double beta2, double eps) {
    return {batch,          channels, std::move(size), std::move(in), std::move(window),
            regularisation, lr,       beta1,           beta2,         eps};
}

template <class T>
void bind_for(py::module_& m, const std::string& suffix) {
    const auto def = [&](const char* name, auto&& function) {
        m.def((name + suffix).c_str(), function, Released());
    };
    def("jacobian_determinant_forward",
        [](const gpu::LatticeShape& shape, Address u, Address determinant, int device, Address stream) {
            gpu::jacobian_determinant_forward<T>(shape, pointer<T>(u), pointer<T>(determinant),
                                                 place(device, stream));
        });
    def("jacobian_determinant_backward", [](const gpu::LatticeShape& shape, Address upstream, Address u,
                                            Address grad_u, int device, Address stream) {
        gpu::jacobian_determinant_backward<T>(shape, pointer<T>(upstream), pointer<T>(u), pointer<T>(grad_u),
                                              place(device, stream));
    });
    def("jacobian_loss_forward",
        [](const gpu::LatticeShape& shape, int penalty, double threshold, Address u, Address value,
           Address folds, Address scratch, int device, Address stream) {
            gpu::jacobian_loss_forward<T>(shape, static_cast<Penalty>(penalty), threshold, pointer<T>(u),
                                          pointer<T>(value), pointer<int64_t>(folds), pointer<void>(scratch),
                                          place(device, stream));
        });
    def("jacobian_loss_backward", [](const gpu::LatticeShape& shape, int penalty, double threshold,
                                     Address upstream, Address u, Address grad_u, int device,
                                     Address stream) {
        gpu::jacobian_loss_backward<T>(shape, static_cast<Penalty>(penalty), threshold, pointer<T>(upstream),
                                       pointer<T>(u), pointer<T>(grad_u), place(device, stream));
    });
    def("jacobian_penalty_forward", [](int ndim, int64_t n, int penalty, double threshold, Address jacobians,
                                       Address value, Address folds, Address scratch, int device,
                                       Address stream) {
        gpu::jacobian_penalty_forward<T>(ndim, n, static_cast<Penalty>(penalty), threshold,
                                         pointer<T>(jacobians), pointer<T>(value), pointer<int64_t>(folds),
                                         pointer<void>(scratch), place(device, stream));
    });
    def("jacobian_penalty_backward",
        [](int ndim, int64_t n, int penalty, double threshold, Address upstream, Address jacobians,
           Address grad_jacobians, int device, Address stream) {
            gpu::jacobian_penalty_backward<T>(ndim, n, static_cast<Penalty>(penalty), threshold,
                                              pointer<T>(upstream), pointer<T>(jacobians),
                                              pointer<T>(grad_jacobians), place(device, stream));
        });
    const auto smoothness = [&](const char* name, auto forward, auto backward) {
        m.def((std::string(name) + "_forward" + suffix).c_str(),
              [forward](const gpu::LatticeShape& shape, Address u, Address value, Address scratch, int device,
                        Address stream) {
                  forward(shape, pointer<const T>(u), pointer<T>(value), pointer<void>(scratch),
                          place(device, stream));
              },
              Released());
        m.def((std::string(name) + "_backward" + suffix).c_str(),
              [backward](const gpu::LatticeShape& shape, Address upstream, Address u, Address grad_u,
                         int device, Address stream) {
                  backward(shape, pointer<const T>(upstream), pointer<const T>(u), pointer<T>(grad_u),
                           place(device, stream));
              },
              Released());
    };
    smoothness("diffusion_loss", &gpu::diffusion_loss_forward<T>, &gpu::diffusion_loss_backward<T>);
    smoothness("bending_loss", &gpu::bending_loss_forward<T>, &gpu::bending_loss_backward<T>);
    def("refine_step", [](const gpu::RefineShape& shape, Address fixed, Address moving, Address displacement,
                          Address mean, Address square, Address largest, Address step, Address work,
                          Address energy, Address scratch, int device, Address stream) {
        gpu::refine_step<T>(shape, pointer<T>(fixed), pointer<T>(moving), pointer<T>(displacement),
                            pointer<T>(mean), pointer<T>(square), pointer<T>(largest), pointer<int64_t>(step),
                            pointer<T>(work), pointer<double>(energy), pointer<void>(scratch),
                            place(device, stream));
    });
    def("table_adam",
        [](int64_t rows, int64_t features, double lr, double beta1, double beta2, double eps, Address table,
           Address grad, Address mean, Address square, Address steps, int device, Address stream) {
            gpu::table_adam<T>(rows, features, lr, beta1, beta2, eps, pointer<T>(table), pointer<T>(grad),
                               pointer<T>(mean), pointer<T>(square), pointer<int32_t>(steps),
                               place(device, stream));
        });
}

}  // namespace

void bind_cuda_lattice(py::module_& m) {
    py::class_<gpu::LatticeShape>(m, "LatticeShape", py::module_local()).def(py::init(&lattice_shape));
    py::class_<gpu::RefineShape>(m, "RefineShape", py::module_local()).def(py::init(&refine_shape));
    m.def("lattice_scratch", &gpu::lattice_scratch);
    m.def("jacobian_penalty_scratch", &gpu::jacobian_penalty_scratch);
    m.def("refine_scratch", &gpu::refine_scratch);
    bind_for<float>(m, "_f32");
    bind_for<double>(m, "_f64");
}

}  // namespace nr
