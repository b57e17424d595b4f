"""A network as a graph: nodes, how it is traced from a function, rewritten, verified and evaluated."""
