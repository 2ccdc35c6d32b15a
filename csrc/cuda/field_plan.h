// From a field's shape and tensors to the network that the kernels walk.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cuda/field_network.h"
#include "cuda/partials.h"

namespace nr {
namespace gpu {

// Builds the layers of both stacks; `keep` leaves every layer's values in the tile, as the backward needs
// them.
template <class T>
class NetworkBuilder {
public:
    NetworkBuilder(const FieldShape& shape, const FieldTensors<const T>& tensors, bool keep)
        : shape_(shape), tensors_(tensors), keep_(keep), depth_(static_cast<int>(shape.hidden.size())) {
        describe_input();
        const int main_in = shape.gated() ? shape.encoded() : shape.inputs();
        if (shape.gated() && keep)
            for (int l = 0; l < depth_; ++l) hidden(1, l, shape.inputs());
        for (int l = 0; l < depth_; ++l) {
            if (shape.gated() && !keep) hidden(1, l, shape.inputs());
            hidden(0, l, main_in);
        }
        FieldLayer<T>& last = add_layer(2 * depth_, shape.hidden.back(), shape.out);
        last.in = of_[0][depth_ - 1]->out;
        last.z = last.out = last.upstream = take(shape.out);
        if (keep) connect_gradients();
        net_.features = features_;
    }

    const Network<T>& network() const { return net_; }
    Network<T>& network() { return net_; }
    // The layer of the main stack (0) or the modulator (1); l == depth is the output.
    FieldLayer<T>& layer(int stack, int l) {
        return l == depth_ ? net_.layers[net_.count - 1] : *of_[stack][l];
    }
    size_t first_layer() const { return first_layer_; }

private:
    int take(int width) {
        features_ += width;
        return features_ - width;
    }

    void describe_input() {
        size_t next = 0;
        net_.ndim = shape_.ndim;
        net_.inputs = shape_.inputs();
        net_.encoded = shape_.encoded();
        net_.out = shape_.out;
        net_.encoding = shape_.encoding;
        net_.output = shape_.output;
        net_.frequencies = shape_.frequencies;
        net_.raw = shape_.raw;
        net_.bfloat16 = shape_.bfloat16;
        net_.scale = static_cast<T>(shape_.scale);
        net_.latent_width = shape_.latent;
        const auto tensor = [&](bool there) { return there ? tensors_.all.at(next++) : nullptr; };
        net_.table = tensor(shape_.encoding != Encoding::kNone);
        net_.latent = tensor(shape_.latent > 0);
        net_.latent_stride = tensors_.latent_rows == 1 ? 0 : shape_.latent;
        net_.volume = tensor(shape_.volume_channels > 0);
        if (net_.volume) {
            const Grid grid = volume_grid(shape_.volume_size, shape_.volume_channels);
            net_.volume_layout = grid;
            net_.volume_level = grid.levels[0];
        }
        first_layer_ = next;
        net_.input = net_.input_gradient = take(shape_.inputs());
    }

    FieldLayer<T>& add_layer(int pair, int fan_in, int fan_out) {
        if (net_.count == kMaxLayers)
            throw std::runtime_error("the cuda backend has at most 8 hidden layers");
        FieldLayer<T>& layer = net_.layers[net_.count++];
        layer = {};
        layer.weight = tensors_.all.at(first_layer_ + pair);
        layer.bias = tensors_.all.at(first_layer_ + pair + 1);
        layer.fan_in = fan_in;
        layer.fan_out = fan_out;
        layer.gate = layer.skip = layer.down = -1;
        return layer;
    }

    void hidden(int stack, int l, int inputs) {
        const int width = shape_.hidden[l];
        FieldLayer<T>& layer =
            add_layer(stack == 1 ? 2 * depth_ + 2 + 2 * l : 2 * l, l ? shape_.hidden[l - 1] : inputs, width);
        of_[stack][l] = &layer;
        layer.activation = static_cast<Activation>(shape_.activation);
        if (layer.activation == Activation::kSine)
            layer.omega = static_cast<T>(stack == 1 ? shape_.gate_omega[l] : shape_.omega[l]);
        layer.in = l ? of_[stack][l - 1]->out : net_.input;
        layer.z = keep_ ? take(width) : reusable(stack, l);
        layer.out = keep_ ? take(width) : layer.z;
        layer.upstream = layer.out;
        if (stack == 0 && shape_.gated()) layer.gate = of_[1][l]->out;
        if (skips(stack) && l > 0) layer.skip = of_[stack][shape_.skip == Skip::kFirst ? 0 : l - 1]->out;
    }

    // Where nothing is kept, a stack's layers take turns in two places; one that later layers add stays in
    // its own.
    int reusable(int stack, int l) {
        if (l == 0 && skips(stack) && shape_.skip == Skip::kFirst) return take(shape_.hidden[0]);
        int& place = turns_[stack][l % 2];
        if (place < 0) place = take(*std::max_element(shape_.hidden.begin(), shape_.hidden.end()));
        return place;
    }

    bool skips(int stack) const { return shape_.skip != Skip::kNone && stack == (shape_.gated() ? 1 : 0); }

    // The kernels go through the layers backwards: the output, the main stack, the modulator.
    void connect_gradients() {
        if (shape_.gated()) {
            net_.input_gradient =
                take(shape_.inputs());  // the modulator needs the input after the main stack
            of_[1][depth_ - 1]->upstream = of_[0][depth_ - 1]->out;
        }
        for (int stack = 0; stack < (shape_.gated() ? 2 : 1); ++stack)
            for (int l = 0; l <= (stack == 0 ? depth_ : depth_ - 1); ++l) {
                FieldLayer<T>& from = layer(stack, l);
                if (l == 0) {
                    from.down = net_.input_gradient;
                    from.onto = stack == 1 ? shape_.encoded() : 0;
                    continue;
                }
                from.down = from.in;  // whose values this layer was the last to need
                const auto add = [&](int slot) { from.adds[from.add_count++] = slot; };
                if (stack == 1) add(of_[0][l - 1]->out);  // from the layer that it gates
                if (!skips(stack)) continue;
                if (shape_.skip == Skip::kPrevious && l < depth_) add(from.upstream);
                if (shape_.skip == Skip::kFirst && l == 1)
                    for (int later = 1; later < depth_; ++later) add(of_[stack][later]->upstream);
            }
    }

    const FieldShape& shape_;
    const FieldTensors<const T>& tensors_;
    const bool keep_;
    const int depth_;
    Network<T> net_{};
    FieldLayer<T>* of_[2][8] = {};
    int turns_[2][2] = {{-1, -1}, {-1, -1}};
    int features_ = 0;
    size_t first_layer_ = 0;
};

}  // namespace gpu
}  // namespace nr
