// What the binding files of the CUDA module share.
#pragma once

#include "bind/bind.h"
#include "cuda/ops.h"

namespace nr {

inline gpu::Where place(int device, Address stream) { return {device, pointer<void>(stream)}; }

void bind_cuda_conv(py::module_& m);
void bind_cuda_encoding(py::module_& m);
void bind_cuda_field(py::module_& m);
void bind_cuda_lattice(py::module_& m);
void bind_cuda_sampling(py::module_& m);

}  // namespace nr
