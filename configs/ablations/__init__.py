"""Grids that `lit-cpt ablate` finds by name, on the small worlds that `lit-cpt worlds` makes."""
