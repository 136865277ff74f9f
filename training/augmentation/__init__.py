"""Further pairs and twins that are made from training pairs."""
