"""A quantized network that needs nothing but JAX to run, and the file that holds one."""
