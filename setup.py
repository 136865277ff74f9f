"""What pyproject.toml has no settled words for: the kernels in C. Everything else is said there."""

from setuptools import Extension, setup

AMX = Extension(
    "rewardserve.model.backends.native._amx",
    ["model/backends/native/amx.c"],
    # For the compiler only: the linker is to find the OpenMP runtime that torch brings, not another one.
    extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fopenmp"],
    optional=True,  # without a compiler the installation goes on, and the server says what it does without
)

setup(ext_modules=[AMX])
