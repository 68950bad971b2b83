// For kernels that promise the bits of their reference: a product is rounded before something is added to it. Metal
// would fuse the two by default, and its compile options cannot say otherwise.
#pragma once

#pragma METAL fp contract(off)
