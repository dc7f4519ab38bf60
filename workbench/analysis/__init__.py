"""Numbers from arrays and tables: best-of-n curves, KL, calibration, standard errors."""
