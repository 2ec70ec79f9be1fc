"""Which resolution for these cameras on this GPU: the model of cost, its evidence and its error."""
