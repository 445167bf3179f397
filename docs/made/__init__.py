"""The pages that are generated from the code, one module for each; docs/generate.py writes them."""
