// A CPU has one address space, so Metal's qualifiers mean nothing here (clang checks them elsewhere).
// `constant` must be empty, not const: MLX writes `const constant`. Variables in threadgroup memory
// are rewritten before compiling (translate.py); other uses of `threadgroup` qualify pointers.
#pragma once

#define device
#define constant
#define threadgroup
#define thread
#define kernel
#define METAL_FUNC inline
