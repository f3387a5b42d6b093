"""Architectures and estimators that methods of the field bring with them."""

from flatminima.models.cards import CARDS

__all__ = ["CARDS"]
