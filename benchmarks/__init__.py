"""What the project measures about itself and about others: not a part of the package."""
