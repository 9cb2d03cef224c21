"""Money: what work costs, and who has how much of it."""
