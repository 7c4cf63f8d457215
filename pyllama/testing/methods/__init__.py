"""The methods that judge a gradient, and how far each of them may be off.

    slopes, compare     the slope along a random direction: a complex step, or extrapolated differences
    entries             the same, entry by entry
    order               the order of the Taylor remainder
    kinks               the slopes on both sides of a kink
    precision           low precision beside float64
    judge               one gradient at one point, by each of these
"""
