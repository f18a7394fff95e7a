"""A teacher's outputs, computed once and kept, in memory or on disk: of the inputs as they are, or of their views."""

from kdjax.caching._folder import StaleError as StaleError
from kdjax.caching._outputs import cache_teacher as cache_teacher
from kdjax.caching._outputs import choose_place as choose_place
from kdjax.caching._outputs import features_of as features_of
from kdjax.caching._outputs import free_memory as free_memory
from kdjax.caching._views import cache_views as cache_views
from kdjax.caching._views import view_batch as view_batch

__all__ = [
    "StaleError",
    "cache_teacher",
    "cache_views",
    "choose_place",
    "features_of",
    "free_memory",
    "view_batch",
]
