"""What makes an int8 graph more accurate by data: steps that each change what was chosen, kept if the results gain.

state.py        State: a placed graph and its choices; Samples: the examples, those to fit on and those held back
channels.py     a scale for each channel of a dot's or convolution's input (SmoothQuant, cross-layer equalisation)
rows.py         the same where the rows of a dot's input have scales of their own
attention.py    query, key, value and context of attention made alike by channel (cross-layer equalisation)
"""
