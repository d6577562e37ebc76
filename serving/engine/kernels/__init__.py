"""The fast products, norms and attention for processors that have AVX-512 with bfloat16; `available` tells."""
