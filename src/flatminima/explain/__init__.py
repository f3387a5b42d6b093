"""What a trained model looks at, and how it can be fooled."""

from flatminima.explain.cards import CARDS

__all__ = ["CARDS"]
