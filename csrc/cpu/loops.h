// NR_INDEPENDENT stands before a loop whose iterations do not depend on each other: the compiler then
// vectorises it without checking a dozen pointers for overlap.
#pragma once

#if defined(__clang__)
#define NR_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define NR_INDEPENDENT _Pragma("GCC ivdep")
#else
#define NR_INDEPENDENT
#endif
