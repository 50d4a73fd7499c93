"""Fewer bits for each number: affine arithmetic, engines that compute in int8, and their files."""
