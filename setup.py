"""The kernels in C, which pyproject.toml cannot describe. `REWARDSERVE_PURE=1` builds a wheel without them, for any platform."""

import os

from setuptools import Extension, setup

AMX = Extension(
    "rewardserve.model.backends.native._amx",
    ["model/backends/native/amx.c"],
    # For the compiler only: the linker is to find the OpenMP runtime that torch brings, not another one.
    extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fopenmp"],
    optional=True,  # without a compiler the installation goes on, and the server says what it does without
)

setup(ext_modules=[] if os.environ.get("REWARDSERVE_PURE") == "1" else [AMX])
