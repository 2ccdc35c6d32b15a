// Activations on a tile, point by point: forward and backward, with K tangents. A tangent passes an
// activation by the slope, the gradient of the value also collects the curvature times what the tangents
// bring.
#pragma once

#include <cuda_runtime.h>

#include "cuda/field_network.h"
#include "math/activation.h"

namespace nr {
namespace gpu {

// A feature of a point: its value and its K tangents, K + 1 numbers of a tile.
template <class T, int K>
struct Jet {
    static constexpr int kPoints = tile_points(K);
    T value = 0, tangents[K > 0 ? K : 1] = {};

    __device__ __forceinline__ void load(const T* feature, int p) {
        value = feature[p];
#pragma unroll
        for (int k = 0; k < K; ++k) tangents[k] = feature[(k + 1) * kPoints + p];
    }
    __device__ __forceinline__ void store(T* feature, int p) const {
        feature[p] = value;
#pragma unroll
        for (int k = 0; k < K; ++k) feature[(k + 1) * kPoints + p] = tangents[k];
    }
    __device__ __forceinline__ void add(const Jet& other) {
        value += other.value;
#pragma unroll
        for (int k = 0; k < K; ++k) tangents[k] += other.tangents[k];
    }
    // Through an activation at this jet's value.
    __device__ __forceinline__ Jet through(const Activated<T>& at) const {
        Jet after;
        after.value = at.value;
#pragma unroll
        for (int k = 0; k < K; ++k) after.tangents[k] = at.slope * tangents[k];
        return after;
    }
    // The gradient to this jet, of the one behind the activation.
    __device__ __forceinline__ Jet back(const Activated<T>& at, const Jet& gradient) const {
        Jet to;
        T bent = 0;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            bent += tangents[k] * gradient.tangents[k];
            to.tangents[k] = at.slope * gradient.tangents[k];
        }
        to.value = at.slope * gradient.value + (K > 0 ? at.curvature * bent : T(0));
        return to;
    }
    __device__ __forceinline__ Jet times(const Jet& other) const {
        Jet product;
        product.value = value * other.value;
#pragma unroll
        for (int k = 0; k < K; ++k)
            product.tangents[k] = value * other.tangents[k] + tangents[k] * other.value;
        return product;
    }
    // The gradient to the other factor of a product with this jet, of the one to the product.
    __device__ __forceinline__ Jet back_to_factor(const Jet& gradient) const {
        Jet to;
        to.value = value * gradient.value;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            to.value += tangents[k] * gradient.tangents[k];
            to.tangents[k] = value * gradient.tangents[k];
        }
        return to;
    }
};

// Calls body(c, p) for every feature below `features` and every point of the tile.
template <int points, class Body>
__device__ __forceinline__ void for_each_point(int features, const Body& body) {
    for (int i = threadIdx.x; i < features * points; i += kFieldThreads) body(i / points, i % points);
}

template <class T, int K>
__device__ __forceinline__ void activate(const FieldLayer<T>& layer, T* tile) {
    for_each_point<tile_points(K)>(layer.fan_out, [&](int c, int p) {
        Jet<T, K> z, other;
        z.load(tile + (layer.z + c) * kPitch, p);
        Jet<T, K> v = z.through(activated(layer.activation, layer.omega, z.value));
        if (layer.gate >= 0) {
            other.load(tile + (layer.gate + c) * kPitch, p);
            v = v.times(other);
        }
        if (layer.skip >= 0) {
            other.load(tile + (layer.skip + c) * kPitch, p);
            v.add(other);
        }
        v.store(tile + (layer.out + c) * kPitch, p);
    });
}

template <class T, int K>
__device__ __forceinline__ void activate_back(const FieldLayer<T>& layer, T* tile) {
    for_each_point<tile_points(K)>(layer.fan_out, [&](int c, int p) {
        Jet<T, K> z, gradient;
        z.load(tile + (layer.z + c) * kPitch, p);
        gradient.load(tile + (layer.upstream + c) * kPitch, p);
        const Activated<T> at = activated(layer.activation, layer.omega, z.value);
        if (layer.gate >= 0) {
            Jet<T, K> gate;
            gate.load(tile + (layer.gate + c) * kPitch, p);
            z.through(at).back_to_factor(gradient).store(tile + (layer.upstream + c) * kPitch, p);
            gradient = gate.back_to_factor(gradient);
        }
        z.back(at, gradient).store(tile + (layer.z + c) * kPitch, p);
    });
}

}  // namespace gpu
}  // namespace nr
