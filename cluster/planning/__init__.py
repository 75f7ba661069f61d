"""How long a run takes and what it costs on another machine: measured rates and the model that scales them."""
