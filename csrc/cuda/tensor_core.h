// A warp's matrix product on tensor cores: bfloat16 factors, sums in float32 (PTX mma.m16n8k16, sm_80 and
// later).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nr {
namespace gpu {

// Two numbers rounded to bfloat16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
#if defined(__CUDACC__)
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return cuda_on_cpu::bfloat16_bits(low) | cuda_on_cpu::bfloat16_bits(high) << 16;
#endif
}

// sum (16 x 8) += a (16 x 16) b (16 x 8). Lane 4 g + t holds, of a, the pairs at columns 2 t and 2 t + 1 of
// rows g and g + 8, then at columns 2 t + 8 and 2 t + 9; of b the pairs at rows 2 t and 2 t + 8 of column g;
// of the sum, columns 2 t and 2 t + 1 of rows g and g + 8. Every lane of the warp calls this.
__device__ __forceinline__ void multiply_bfloat16(float (&sum)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    cuda_on_cpu::mma_bfloat16(sum, a, b, __FILE__, __LINE__);
#endif
}

}  // namespace gpu
}  // namespace nr
