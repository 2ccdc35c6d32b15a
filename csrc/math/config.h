// NR_HD marks mathematics that runs in a CPU loop and in a CUDA kernel alike.
#pragma once

#if defined(__CUDACC__)
#define NR_HD __host__ __device__
#else
#define NR_HD
#endif

// NR_INLINE for formulas in loops that have to be vectorised: a call that stays a call ends that.
#if defined(__CUDACC__)
#define NR_INLINE __forceinline__
#else
#define NR_INLINE inline __attribute__((always_inline))
#endif
