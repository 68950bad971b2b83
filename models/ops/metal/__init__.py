"""The operators with their cells and convolution as Metal kernels."""
