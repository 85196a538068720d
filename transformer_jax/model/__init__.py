"""The models, behind one protocol; pure functions of arrays inside."""
