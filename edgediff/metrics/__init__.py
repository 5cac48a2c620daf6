"""What a model is worth, as pure functions in a ladder: features → statistics → value.

Distribution: `features` (images to vectors), then `frechet`, `kid`, `precision_recall`. Paired images: `paired`.
Cost: `cost` (parameters, MACs) and `percentiles` (latency). Values are float64; import from the submodules.
"""
