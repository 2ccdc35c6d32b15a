#include "bind/bind.h"
#include "cpu/features.h"
#include "cpu/memory.h"

PYBIND11_MODULE(NR_MODULE_NAME, m) {
    m.def("cpu_features", &nr::cpu_features, "Instruction sets of this machine that a module exists for.");
    m.def("expect_writes", [](nr::Address address, int64_t bytes) {
        nr::expect_writes(nr::pointer<uint8_t>(address), bytes);
    });
    nr::bind_shapes(m);
    nr::bind_field<float>(m, "_f32");
    nr::bind_field<double>(m, "_f64");
    nr::bind_image<float>(m, "_f32");
    nr::bind_image<double>(m, "_f64");
    nr::bind_conv<float>(m, "_f32");
    nr::bind_conv<double>(m, "_f64");
    nr::bind_lattice<float>(m, "_f32");
    nr::bind_lattice<double>(m, "_f64");
}
