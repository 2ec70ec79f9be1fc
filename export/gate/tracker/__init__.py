"""The gate of the tracker's sub-models, which measures each against transformers' own tracker."""
