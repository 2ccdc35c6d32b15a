// What the binding files share. Addresses come in as integers: no tensor type is known below Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

namespace nr {

namespace py = pybind11;
using Address = std::uintptr_t;
using Released = py::call_guard<py::gil_scoped_release>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> pointers(const std::vector<Address>& addresses) {
    std::vector<T*> result;
    for (Address a : addresses) result.push_back(pointer<T>(a));
    return result;
}

void bind_shapes(py::module_& m);

// Each family defines its functions once per scalar type; the suffix is "_f32" or "_f64".
template <class T>
void bind_field(py::module_& m, const std::string& suffix);
template <class T>
void bind_sampling(py::module_& m, const std::string& suffix);
template <class T>
void bind_image(py::module_& m, const std::string& suffix);
template <class T>
void bind_conv(py::module_& m, const std::string& suffix);
template <class T>
void bind_lattice(py::module_& m, const std::string& suffix);

}  // namespace nr
