"""How long a run takes on other machines: measured rates, and the model that scales them."""
