"""The kernels in C, which pyproject.toml cannot describe. `REWARDSERVE_PURE=1` builds a wheel without them, for any platform."""

import os

from setuptools import Extension, setup

NATIVE = "model/backends/native"


def kernels(instructions: str) -> Extension:
    return Extension(
        f"rewardserve.model.backends.native._{instructions}",
        [f"{NATIVE}/{instructions}.c"],
        depends=[f"{NATIVE}/kernels.h"],
        # For the compiler only: the linker is to find the OpenMP runtime that torch brings, not another one.
        extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fopenmp"],
        optional=True,  # without a compiler the installation goes on, and the server says what it does without
    )


setup(ext_modules=[] if os.environ.get("REWARDSERVE_PURE") == "1" else [kernels("amx"), kernels("avx512")])
