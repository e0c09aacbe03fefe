"""Does a generator depend on what it should not: effects with intervals, rates corrected for errors, repair, cost."""
