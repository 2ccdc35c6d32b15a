// Which instruction sets this machine runs, by the names of the extension modules; and "avx512bf16" where the
// module that is asked uses it.
#pragma once

#include <string>
#include <vector>

#include "cpu/bfloat16.h"

namespace nr {

inline std::vector<std::string> cpu_features() {
    std::vector<std::string> names{"base"};
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2) names.push_back("avx2");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        names.push_back("avx512");
#endif
    if (machine_multiplies_pairs()) names.push_back("avx512bf16");
    return names;
}

}  // namespace nr
