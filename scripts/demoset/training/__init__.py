"""How the demo models were trained and are measured."""
