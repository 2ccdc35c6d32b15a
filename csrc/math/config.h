// NR_HD marks mathematics that runs in a CPU loop and in a CUDA kernel alike.
#pragma once

#if defined(__CUDACC__)
#define NR_HD __host__ __device__
#else
#define NR_HD
#endif
