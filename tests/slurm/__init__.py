"""A throwaway Slurm cluster, and what is tested on it."""
