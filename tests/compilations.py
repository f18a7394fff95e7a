"""How often XLA compiles: what no test of a loop or a sweep can see otherwise."""

import jax


class Compilations:
    """How many programs XLA has compiled, as JAX itself reports."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event, _seconds, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


COMPILATIONS = Compilations()
