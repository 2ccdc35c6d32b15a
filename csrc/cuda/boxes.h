// Box sums of several fields over volumes, streamed: cost independent of the window but for the rim of a
// tile, no buffer of volume size.
//
// A block owns a tile of 32 x tile_y columns of one channel and marches along z. For every column of the tile
// and its rim it keeps the sums over the window's planes, adding the plane that enters and subtracting the
// one that leaves, which is read again (from the cache). Boxes along x and then y follow in shared memory as
// differences of two running sums, one fed with the entering and one with the leaving entries. Sums are
// float64: products of float32 numbers are exact, and what the running sums lose is far below a float32
// rounding; every chunk of planes starts afresh.
//
// Windows that hold only zeros come out as exactly zero: along z the number of nonzero entries is kept as
// well and clears the sum, along x and y both running sums have received the same numbers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "math/config.h"

namespace nr {
namespace gpu {

constexpr int kThreads = 256;
constexpr int kBlocks = 3;  // on a multiprocessor at a time: leaves 80 registers a thread
constexpr int kTileX = 32;
constexpr int kRowPitch = kTileX + 1;  // odd: neighbouring rows start in different banks

// Output o sums the inputs o - before ... o + after that exist.
struct BoxAxis {
    int in = 1, out = 1, before = 0, after = 0;

    BoxAxis() = default;
    BoxAxis(int64_t in, int64_t out, int64_t before, int64_t after)
        : in(static_cast<int>(in)),
          out(static_cast<int>(out)),
          before(static_cast<int>(std::min(before, out - 1))),
          after(static_cast<int>(std::min(after, in - 1))) {}
    NR_HD int window() const { return before + 1 + after; }
    BoxAxis adjoint() const { return {out, in, after, before}; }
};

struct Boxes {
    BoxAxis z, y, x;
};

// How the work is cut into blocks: by shapes and the device's limit alone, so that results repeat.
struct Plan {
    Boxes boxes;
    int z_begin = 0, z_end = 0;  // planes of output
    int chunk = 1;               // planes of a block
    int tile_y = 16;
    int tiles_x = 0, tiles_y = 0, chunks = 0;
    int64_t blocks = 0;
    int64_t bytes = 0;         // of a block's sums
    bool in_shared = true;     // otherwise they live in global scratch, which windows of any size fit into
    unsigned char* scratch{};  // blocks * bytes, or null

    // Kept rather than computed: constants of a launch cost no registers. A tile with its rim:
    int width = 0, height = 0, pitch = 0, columns = 0;
    int lines = 0, pieces = 0, length = 0;  // boxes along x: all fields' rows, cut into pieces of a length

    size_t shared() const { return in_shared ? static_cast<size_t>(bytes) : 0; }
    size_t scratch_bytes() const { return in_shared ? 0 : static_cast<size_t>(blocks * bytes); }
};

inline Plan plan(const Boxes& boxes, int fields, int64_t channels, int z_begin, int z_end, size_t limit) {
    constexpr int64_t target = 320;  // blocks that keep the largest devices busy
    Plan p;
    p.boxes = boxes;
    p.z_begin = z_begin;
    p.z_end = z_end;
    const auto bytes = [&] {
        p.width = kTileX + boxes.x.window() - 1;
        p.height = p.tile_y + boxes.y.window() - 1;
        p.pitch = p.width | 1;  // odd, as kRowPitch
        p.columns = p.width * p.height;
        p.lines = fields * p.height;
        const int64_t sums =
            int64_t{1} * p.lines * (p.pitch + kRowPitch) * static_cast<int64_t>(sizeof(double));
        const int64_t counts = int64_t{1} * p.columns * static_cast<int64_t>(sizeof(uint32_t));
        return (sums + counts + 15) / 16 * 16;
    };
    const auto fits = [&] { return bytes() <= static_cast<int64_t>(limit); };
    while (p.tile_y > 4 && (!fits() || p.tile_y / 2 >= boxes.y.out)) p.tile_y /= 2;
    p.in_shared = fits();
    if (!p.in_shared) p.tile_y = 16;
    p.bytes = bytes();
    p.pieces = p.lines < kThreads ? kThreads / p.lines : 1;
    p.length = (kTileX + p.pieces - 1) / p.pieces;
    p.tiles_x = (boxes.x.out + kTileX - 1) / kTileX;
    p.tiles_y = (boxes.y.out + p.tile_y - 1) / p.tile_y;
    const int64_t tiles = channels * p.tiles_x * p.tiles_y, planes = z_end - z_begin;
    if (tiles == 0 || planes <= 0) return p;
    // Chunks cost a warm-up of one window each, too few of them leave the device idle.
    const int64_t least = (planes + 63) / 64, most = std::max<int64_t>(least, planes / 8);
    const int64_t chunks = std::min(most, std::max(least, (target + tiles - 1) / tiles));
    p.chunk = static_cast<int>((planes + chunks - 1) / chunks);
    p.chunks = static_cast<int>((planes + p.chunk - 1) / p.chunk);
    p.blocks = tiles * p.chunks;
    return p;
}

// The block's place in the plan.
struct Tile {
    int x0, y0, z0, z1;
    int64_t channel;

    __device__ explicit Tile(const Plan& p) {
        unsigned rest = blockIdx.x;
        x0 = static_cast<int>(rest % p.tiles_x) * kTileX;
        rest /= p.tiles_x;
        y0 = static_cast<int>(rest % p.tiles_y) * p.tile_y;
        rest /= p.tiles_y;
        z0 = p.z_begin + static_cast<int>(rest % p.chunks) * p.chunk;
        z1 = z0 + p.chunk < p.z_end ? z0 + p.chunk : p.z_end;
        channel = rest / p.chunks;
    }
};

// Sums over the window's planes, for the tile's columns and the rim's, of output plane o.
template <class Source>
__device__ inline void slide_along_z(const Plan& p, const Tile& tile, const Source& source, int o,
                                     double* sums, uint32_t* counts) {
    constexpr int F = Source::kFields;
    const BoxAxis &z = p.boxes.z, &y = p.boxes.y, &x = p.boxes.x;
    const bool first = o == tile.z0;
    const int stride = p.height * p.pitch;
    const int last = o + z.after < z.in ? o + z.after : z.in - 1;
    const int enter = !first ? o + z.after : o - z.before > 0 ? o - z.before : 0;
    const int leave = first ? -1 : o - z.before - 1;
    for (int c = static_cast<int>(threadIdx.x); c < p.columns; c += kThreads) {
        const int row = c / p.width, column = c - row * p.width;
        const int iy = tile.y0 - y.before + row, ix = tile.x0 - x.before + column;
        double* at = sums + row * p.pitch + column;
        double s[F];
        uint32_t count = 0;
        for (int k = 0; k < F; ++k) s[k] = 0;
        if (!first) {
            count = counts[c];
            for (int k = 0; k < F; ++k) s[k] = at[k * stride];
        }
        if (iy >= 0 && iy < y.in && ix >= 0 && ix < x.in) {
            double v[F];
#pragma unroll 1  // one plane but for the first output: unrolled, the registers spill
            for (int plane = enter; plane <= last; ++plane) {
                count += source.read(plane, iy, ix, v);
                for (int k = 0; k < F; ++k) s[k] += v[k];
            }
            if (leave >= 0) {
                count -= source.read(leave, iy, ix, v);
                for (int k = 0; k < F; ++k) s[k] -= v[k];
            }
            Source::clear(count, s);
        }
        counts[c] = count;
        for (int k = 0; k < F; ++k) at[k * stride] = s[k];
    }
}

// Boxes along x: rows[f][row][0 ... 31] from sums[f][row].
__device__ inline void boxes_along_x(const Plan& p, const double* sums, double* rows) {
    const int window = p.boxes.x.window();
    for (int task = static_cast<int>(threadIdx.x); task < p.lines * p.pieces; task += kThreads) {
        const int piece = task / p.lines, line = task - piece * p.lines;  // neighbouring threads, other banks
        const int begin = piece * p.length, end = begin + p.length < kTileX ? begin + p.length : kTileX;
        const double* from = sums + line * p.pitch;
        double* to = rows + line * kRowPitch;
        double entered = 0, left = 0;
        if (begin < end)
            for (int i = begin; i < begin + window - 1; ++i) entered += from[i];
        for (int i = begin; i < end; ++i) {
            entered += from[i + window - 1];
            to[i] = entered - left;
            left += from[i];
        }
    }
}

// Boxes along y, in place: the box of output row i replaces row i, which no later box needs.
__device__ inline void boxes_along_y(const Plan& p, int fields, double* rows) {
    const int window = p.boxes.y.window();
    for (int task = static_cast<int>(threadIdx.x); task < fields * kTileX; task += kThreads) {
        double* line = rows + task / kTileX * p.height * kRowPitch + task % kTileX;
        double entered = 0, left = 0;
        for (int i = 0; i < window - 1; ++i) entered += line[i * kRowPitch];
        for (int i = 0; i < p.tile_y; ++i) {
            entered += line[(i + window - 1) * kRowPitch];
            const double leaving = line[i * kRowPitch];
            line[i * kRowPitch] = entered - left;
            left += leaving;
        }
    }
}

// Calls sink(plane, y, x, sums) for every output of the tile in plane o.
template <int F, class Sink>
__device__ inline void for_outputs(const Plan& p, const Tile& tile, int o, const double* rows, Sink& sink) {
    for (int i = static_cast<int>(threadIdx.x); i < p.tile_y * kTileX; i += kThreads) {
        const int row = i / kTileX, column = i % kTileX;
        const int y = tile.y0 + row, x = tile.x0 + column;
        if (y >= p.boxes.y.out || x >= p.boxes.x.out) continue;
        double s[F];
        for (int k = 0; k < F; ++k) s[k] = rows[(k * p.height + row) * kRowPitch + column];
        sink(o, y, x, s);
    }
}

// Marches a tile through its planes. Source::read fills the fields of a voxel and
// returns how many of them are nonzero, group by group; Source::clear zeroes the groups that have none.
template <class Source, class Sink>
__device__ inline void march(const Plan& p, const Tile& tile, unsigned char* memory, const Source& source,
                             Sink& sink) {
    constexpr int F = Source::kFields;
    double* sums = reinterpret_cast<double*>(memory);
    double* rows = sums + F * p.height * p.pitch;
    uint32_t* counts = reinterpret_cast<uint32_t*>(rows + F * p.height * kRowPitch);
    for (int o = tile.z0; o < tile.z1; ++o) {
        slide_along_z(p, tile, source, o, sums, counts);
        __syncthreads();
        boxes_along_x(p, sums, rows);
        __syncthreads();
        boxes_along_y(p, F, rows);
        __syncthreads();
        for_outputs<F>(p, tile, o, rows, sink);
    }
}

}  // namespace gpu
}  // namespace nr
