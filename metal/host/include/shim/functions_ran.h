// Builds with -finstrument-functions note which functions of a kernel library have run. The compiler then
// calls two functions at the beginning and at the end of each function, inlined or not. Every library has
// its own and prefers them (-Bsymbolic-functions), because the C library has empty ones of these names.
#pragma once

#ifdef MLXHOG_FUNCTIONS_RAN

#define MLXHOG_NOT_INSTRUMENTED __attribute__((no_instrument_function))

namespace metal_host {
MLXHOG_NOT_INSTRUMENTED void entered(void* function);
}

extern "C" {
MLXHOG_NOT_INSTRUMENTED void __cyg_profile_func_enter(void* function, void*) {
  metal_host::entered(function);
}
MLXHOG_NOT_INSTRUMENTED void __cyg_profile_func_exit(void*, void*) {}
}

#endif
