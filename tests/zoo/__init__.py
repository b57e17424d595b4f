"""Networks of the families that people have, as Flax users write them: full-size for counts, small for end to end."""
