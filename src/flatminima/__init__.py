"""Training into flat minima with Noise Stability Optimization, and measuring what it did."""
