"""Which compiler the tests take: most of their time is compilation, and most of it is of programs that run once.

What is computed is the same but for rounding. Where a law speaks of the last bit of two programs, it takes the compiler
as users have it: `jax.jit(function, compiler_options=AS_USERS_HAVE_IT)`.
"""

import os

# XLA's older emitters without LLVM's optimisation take less than half of the time.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
AS_USERS_HAVE_IT = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}


def careful_options():
    """Options for `jax.jit`, for laws of many digits; none where the tests' flags are not set: releases know other names.

    The first level of optimisation is enough for them, and takes two thirds of the users' time.
    """
    return {"xla_backend_optimization_level": 1} if QUICK in os.environ.get("XLA_FLAGS", "") else {}
