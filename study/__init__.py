"""What is measured of searches, drawn, claimed, and compared."""
