"""The checker that the suite runs on every annotated function of repro.models (see conftest.py); notebooks pay nothing for it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a valid float, as everywhere in Python
