"""Several models trained equally, and a report on what they learned and what they cost."""
