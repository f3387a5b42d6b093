"""Data matrices by their columns: numpy arrays, torch tensors and scipy.sparse, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.errors import InputError, require

Array = NDArray[Any]
Block = NDArray[np.intp]


def is_sparse(matrix: Any) -> bool:
    """Whether it is a matrix of scipy.sparse, told by what it can do."""
    return hasattr(matrix, "tocsc") and hasattr(matrix, "nnz")


def numbers(name: str, values: Any, dtype: Any = None) -> Array:
    """An array of finite floats; float32 stays float32 unless a dtype is given.

    Raises:
        InputError: values that are no real numbers, or not finite.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().to(_float(values.dtype)).numpy()
    array = np.asarray(values)
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise InputError(f"{name} holds {array.dtype}: give real numbers")
    array = array.astype(dtype or _kept(array.dtype), copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{name} has numbers that are nan or infinite: drop or fill them")
    return array


def data_matrix(name: str, given: Any) -> Any:
    """A dense array in column order, or a CSC matrix; both take `[:, block]`, `@` and `.T`.

    Raises:
        InputError: not two-dimensional, empty, not real or not finite.
    """
    if isinstance(given, Tensor) and given.layout != torch.strided:
        given = _from_sparse_tensor(given)
    if is_sparse(given):
        matrix = given.tocsc()
        if matrix.dtype.kind not in "biuf":
            raise InputError(f"{name} holds {matrix.dtype}: give real numbers")
        matrix = matrix.astype(_kept(matrix.dtype), copy=False)
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        numbers(name, matrix.data)
    else:
        matrix = numbers(name, given)
        if matrix.ndim == 2:
            matrix = np.asfortranarray(matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"{name} has the shape {tuple(matrix.shape)}: give rows and columns")
    return matrix


def squared_norms(matrix: Any) -> Array:
    """The squared 2-norm of each column."""
    if is_sparse(matrix):
        return np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
    return np.asarray(np.einsum("ij,ij->j", matrix, matrix))


def gram(columns: Any, others: Any) -> Array:
    """columns^T others, dense; O(non-zeros) for sparse ones and few columns."""
    product = columns.T @ others
    return np.asarray(product.toarray() if is_sparse(product) else product)


def scaled_rows(columns: Any, factors: Array) -> Any:
    """Each entry times a factor of its row, (n,), or of its row and column, (n, columns)."""
    if not is_sparse(columns):
        return columns * (factors[:, None] if factors.ndim == 1 else factors)
    scaled = columns.copy()
    if factors.ndim == 1:
        scaled.data = columns.data * factors[columns.indices]
    else:
        column = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
        scaled.data = columns.data * factors[columns.indices, column]
    return scaled


def like(given: Any, array: Array) -> Any:
    """The array as the user's data came: a tensor on its device for a tensor, else numpy."""
    if isinstance(given, Tensor):
        return torch.from_numpy(np.array(array)).to(given.device)
    return np.array(array)


def _kept(dtype: np.dtype[Any]) -> Any:
    return np.float32 if dtype in (np.dtype(np.float32), np.dtype(np.float16)) else np.float64


def _float(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        raise InputError(f"a tensor of {dtype} was given: give real numbers")
    return torch.float32 if dtype.is_floating_point and dtype.itemsize <= 4 else torch.float64


def _from_sparse_tensor(given: Tensor) -> Any:
    sparse = require("scipy.sparse", "estimators")
    whole = given.detach().cpu().to_sparse(layout=torch.sparse_coo).coalesce()
    rows, columns = whole.indices().numpy()
    values = whole.values().to(_float(given.dtype)).numpy()
    return sparse.csc_matrix((values, (rows, columns)), shape=tuple(given.shape))
