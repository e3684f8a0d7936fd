"""A notebook-first kit that reproduces three vision-language-action papers on a laptop or on free GPUs."""

__version__ = "0.1.0"
