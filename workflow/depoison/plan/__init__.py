"""Planning: configuration → specs → paths. Pure Python; imports no torch, so that a dry run is fast."""
