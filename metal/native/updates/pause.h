// One turn of a spin loop.
#pragma once

namespace mlxhog {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` is a no-op on most ARM cores; isb costs a few dozen cycles
#endif
}

}  // namespace mlxhog
