"""What the README's figures are measured with: `python -m bench NAME`."""
