"""What `compare_peers.py` is made of: the networks, their ONNX form, the runtimes, and the stopwatch."""
