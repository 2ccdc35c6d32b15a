// What the tests set in a library of kernels that runs on the CPU.
#include "fibers.h"

extern "C" void cuda_on_cpu_set_order(unsigned order) { cuda_on_cpu::order() = order; }
extern "C" void cuda_on_cpu_set_shared_memory(unsigned bytes) { cuda_on_cpu::shared_memory_size() = bytes; }
