// Label images: the nearest voxel's label, or an interpolated vote. Labels are compared and copied, never
// computed with.
#include "cpu/sampling_cells.h"
#include "math/vote.h"

namespace nr {

namespace {

// Labels of a cell's corners, 0 outside the image, and their weights.
template <class Label, class T, int ND>
void corners(const ImageAxes<ND>& axes, const Cells<T, ND>& cells, int i, const Label* image,
             Label (&label)[1 << ND], double (&weight)[1 << ND]) {
    for (int j = 0; j < (1 << ND); ++j) {
        int64_t at = cells.base[i];
        bool inside = true;
        double product = 1;
        for (int k = 0; k < ND; ++k) {
            const int side = (j >> (ND - 1 - k)) & 1, from = cells.inside[k] ? side : cells.from[k][side][i];
            const double w = static_cast<double>(cells.weight[k][i]);
            inside &= from >= 0;
            at += from > 0 ? axes.step[k] : 0;
            product *= side ? w : 1 - w;
        }
        label[j] = inside ? image[at] : Label(0);
        weight[j] = product;
    }
}

template <class Label, class T, int ND>
void labels_forward(const SampleShape& shape, const Label* labels, const T* coordinates, const T* affine,
                    Label* out, int threads) {
    const ImageAxes<ND> axes(shape.in);
    const Source<T, ND> first(shape, coordinates, affine, 0);
    const Chunks chunks(first.points, first.row(), kChunkPoints);
    for_chunks(shape.batch, chunks, threads, [&](int64_t batch, int64_t chunk, int64_t) {
        const Source<T, ND> source(shape, coordinates, affine, batch);
        T x[ND][kBlock];
        Cells<T, ND> cells;
        int32_t voxel[kBlock], inside[kBlock];
        source.walk(chunks.begin(chunk), chunks.end(chunk), [&](const Block<ND>& block) {
            source.locate(block, axes, x);
            if (shape.nearest)
                find_nearest<T, ND>(shape, axes, x, voxel, inside);
            else
                find_cells<T, ND>(shape, axes, x, cells);
            for (int64_t c = 0; c < shape.channels; ++c) {
                const int64_t plane = batch * shape.channels + c;
                const Label* image = labels + plane * axes.voxels;
                Label* to = out + plane * source.points + block.point;
                for (int i = 0; i < block.length; ++i) {
                    if (shape.nearest) {
                        to[i] = inside[i] ? image[voxel[i]] : Label(0);
                        continue;
                    }
                    Label label[1 << ND];
                    double weight[1 << ND];
                    corners<Label, T, ND>(axes, cells, i, image, label, weight);
                    to[i] = vote(label, weight);
                }
            }
        });
    });
}

}  // namespace

template <class Label, class T>
void sample_labels(const SampleShape& shape, const Label* labels, const T* coordinates, const T* affine,
                   Label* out, int threads) {
    if (empty(shape)) return;
    const auto run = shape.in.size() == 2 ? labels_forward<Label, T, 2> : labels_forward<Label, T, 3>;
    run(shape, labels, coordinates, affine, out, threads);
}

#define NR_LABELS(Label)                                                                                    \
    template void sample_labels<Label, float>(const SampleShape&, const Label*, const float*, const float*, \
                                              Label*, int);                                                 \
    template void sample_labels<Label, double>(const SampleShape&, const Label*, const double*,             \
                                               const double*, Label*, int);
NR_LABELS(uint8_t)
NR_LABELS(int8_t)
NR_LABELS(int16_t)
NR_LABELS(int32_t)
NR_LABELS(int64_t)
NR_LABELS(float)
NR_LABELS(double)
#undef NR_LABELS

}  // namespace nr
