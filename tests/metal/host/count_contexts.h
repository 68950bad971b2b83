// Counts calls of makecontext, which zeroes a whole stack on Apple's arm64.
#pragma once

#include <ucontext.h>

extern "C" __attribute__((visibility("default"), used)) inline int mlxhog_contexts = 0;
#define makecontext(...) (__atomic_fetch_add(&mlxhog_contexts, 1, __ATOMIC_RELAXED), makecontext(__VA_ARGS__))
