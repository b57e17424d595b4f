"""What makes an int8 graph more accurate by data: steps that each change what was chosen, kept if the results gain.

state.py        State: a placed graph and its choices; Samples: the examples, those to fit on and those held back
readers.py      a convolution or dot by itself: how far rounding takes its results from those in float
attention.py    query, key, value and context of attention made alike by channel (cross-layer equalisation)
biases.py       biases that take the mean error away (bias correction)
channels.py     a scale for each channel of a dot's or convolution's input (SmoothQuant, cross-layer equalisation)
rows.py         the same where the rows of a dot's input have scales of their own
outliers.py     channels far above the others computed apart
weights.py      weights clipped where that is better
rounding.py     the weights of a layer beside the levels that they are rounded to
gptq.py         each weight of a dot rounded so that it makes up for those rounded before (GPTQ)
polish.py       the rounding of weights found by gradients (AdaRound)
recipe.py       the steps in order; gain.py, what each brought
"""
