"""Gluon, the language of the kernels for one architecture, under the same names in every version.

It comes inside triton and still changes from version to version. Only modules that launch such
kernels import this one, after :func:`.forms.problem_of_gluon` has found no problem.
"""

from triton.experimental.gluon import jit, language
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

__all__ = [
    "TensorDescriptor",
    "copy_in",
    "fence",
    "gl",
    "jit",
    "mbarrier",
    "multiply",
    "wait_for_products",
]

gl = language
mbarrier = hopper.mbarrier
multiply = hopper.warpgroup_mma
wait_for_products = hopper.warpgroup_mma_wait
fence = hopper.fence_async_shared
# Starts a copy of a block of a tensor into shared memory; triton 3.9 renamed it.
copy_in = getattr(hopper.tma, "async_load", None) or hopper.tma.async_copy_global_to_shared
