"""The page: a running fleet flows in, a mosaic of its cameras in a browser flows out, whose classes can be edited while
it runs."""
