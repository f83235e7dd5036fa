"""What computes: arrays in, arrays out, no layer's name and no layout."""
