"""Side-by-side measurements: sealed against unsealed, over the same gRPC, in one run."""
