"""HTTP entry points: the three endpoints, resources, health. Flask is known here and in the assembly only."""
