"""How pictures look, and where matplotlib draws them."""
