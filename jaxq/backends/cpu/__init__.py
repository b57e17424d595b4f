"""The backend for CPUs: C++ kernels for int8 dot instructions in an optional shared library, behind `jax.ffi`."""

from jaxq.backends.cpu import library

# Its targets are known to XLA before anything is traced; this costs one dlopen and starts no backend of JAX.
library.load()
