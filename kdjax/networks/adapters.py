"""Networks of any framework as `Weights` and an `Apply`: Flax Linen, Flax NNX and Equinox.

A network may return `Outputs`, a pair (logits, features by name), logits alone, or what has them by that name: a dict, or a
dataclass such as those of the usual transformers, whose ``hidden_states`` are the features ``hidden_states_0`` … With
``train=False`` every adapter ignores `rng` and hands back the model_state that it got.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from kdjax._apply import outputs_of
from kdjax._types import Apply, Outputs, Tree, Weights
from kdjax.networks._noise import key_of_device, key_per_example, seeded

Init = Callable[[PRNGKeyArray, Tree], Weights]
Rng = PRNGKeyArray | None
Prediction = tuple[Outputs, Tree]
Modes = Mapping[str, Any]
TRAINING = {
    **dict.fromkeys(("train", "training", "is_train", "is_training", "enable_dropout"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "inference", "eval_mode"), False),
}
"""What the usual names of a mode's argument are while a network trains; the opposite while it infers."""


def from_linen(module: Any, *, modes: Modes | None = None, axis_name: str | None = None) -> tuple[Init, Apply]:
    """A Flax Linen module as two pure functions.

    Args:
      module: a ``flax.linen.Module``. Its ``__call__`` takes the inputs and, where it acts differently while training, an
        argument that says so. Collections other than ``"params"`` become the model_state; values that ``sow`` keeps in
        tuples are replaced at every pass, and do not pile up. Noise of any stream of ``make_rng`` is a function of the
        key; a module that asks ``has_rng`` first is told of ``"dropout"`` and ``"params"`` alone.
      modes: the arguments of ``__call__`` that say whether it trains, as ``{name: value while training}``, or for what is
        no bool ``{name: (value while training, value otherwise)}``; ``{}`` where none does. None: those of the usual
        names, `TRAINING`, and an error where another argument is a bool and could be one.
      axis_name: the device axis. Where given, the key is folded with the device's number, so that each device draws
        its own noise. Leave it None for modules that key their noise per example, as `kdjax.models` do.

    Returns:
      ``init(rng, inputs) -> Weights`` and the module's `Apply`.

    Raises:
      ValueError: if ``__call__`` needs more than these, or has an argument that may be a mode, of a name that is not known;
        later, if it returns no logits.

    Example:
      >>> from flax import linen as nn
      >>> init, apply = from_linen(nn.Dense(3))
      >>> weights = init(jax.random.key(0), jnp.ones((1, 4)))
      >>> apply(*weights, jnp.ones((2, 4)), train=False)[0].logits.shape
      (2, 3)
    """
    if not (hasattr(module, "init") and hasattr(module, "apply")):
        raise ValueError(f"module must be a flax.linen.Module, with init and apply; got {type(module).__name__}.")
    training, inferring = _modes_of(module, "module", modes)

    def init(rng: PRNGKeyArray, inputs: Tree) -> Weights:
        model_state = dict(module.init(rng, inputs, **inferring))
        return Weights(model_state.pop("params", {}), model_state)

    def apply(params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: Rng = None) -> Prediction:
        variables = {"params": params, **model_state}
        if not train:
            return _outputs(module.apply(variables, inputs, **inferring), module), model_state
        rngs = {}
        if rng is not None:
            key = key_of_device(rng, axis_name)
            rngs = {"dropout": key, "params": jax.random.fold_in(key, 0)}  # Flax draws any other stream from "params"
        result, changed = module.apply(variables, inputs, rngs=rngs, mutable=list(model_state), **training)
        return _outputs(result, module), _in_the_form_of(model_state, changed)

    return init, apply


def from_nnx(model: Any, *, modes: Modes | None = None, axis_name: str | None = None) -> tuple[Weights, Apply]:
    """A Flax NNX model as its arrays and a pure function; the model itself is never changed.

    Args:
      model: a ``flax.nnx.Module`` that is called with the inputs. Values that it sows are replaced at every pass, and those
        of which it had none are left out. Its ``train()`` and ``eval()`` set the mode, and so
        does an argument of its ``__call__`` where it has one. Every ``Param`` goes to the params; all other variables,
        such as BatchNorm's statistics, to the model_state. Its random streams go to neither: while training, each starts
        from a key derived from `rng`.
      modes: as in `from_linen`.
      axis_name: the device axis; as in `from_linen`.

    Returns:
      `Weights` of plain dicts of arrays, copies of the model's, and the `Apply`. To write trained arrays back into the
      model: ``nnx.update(model, params, model_state)``.

    Raises:
      ImportError: if this flax and this jax have no ``flax.nnx`` together.
      ValueError: if `model` is no ``nnx.Module``, or as `from_linen` says of arguments; later, if it returns no logits, or
        if it draws noise and is trained without `rng`.

    Example:
      >>> from flax import nnx
      >>> weights, apply = from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> apply(*weights, jnp.ones((2, 4)), train=False)[0].logits.shape
      (2, 3)
    """
    nnx = _import_nnx()
    if not isinstance(model, nnx.Module):
        raise ValueError(f"model must be a flax.nnx.Module; got {type(model).__name__}.")
    in_training, in_inference = _modes_of(model, "model", modes, settable=TRAINING)
    # The mode is static, a part of the graph definition: one definition for each.
    own = nnx.clone(model)
    nnx.pop(own, nnx.Intermediate)
    own.eval()
    _set_flags(nnx, own, train=False, asked=modes is None)
    inferring = nnx.graphdef(own)
    own.train()
    _set_flags(nnx, own, train=True, asked=modes is None)
    training, *states = nnx.split(own, nnx.Param, nnx.RngState, ...)
    own_params, streams, own_state = map(nnx.to_pure_dict, states)

    def apply(params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: Rng = None) -> Prediction:
        if not train:
            merged = nnx.merge(inferring, params, streams, model_state)
            return _outputs(merged(inputs, **in_inference), model), model_state
        if rng is None and jax.tree.leaves(streams):
            raise ValueError(f"rng must be a key while training {type(model).__name__}, which draws noise; got None.")
        fresh = streams if rng is None else seeded(streams, key_of_device(rng, axis_name))
        merged = nnx.merge(training, params, fresh, model_state)
        outputs = _outputs(merged(inputs, **in_training), model)
        nnx.pop(merged, nnx.Intermediate)
        changed = nnx.to_pure_dict(nnx.state(merged, nnx.Not(nnx.Any(nnx.Param, nnx.RngState))))
        return outputs, _in_the_form_of(model_state, changed)

    return Weights(_copies(own_params), _copies(own_state)), apply


def from_equinox(
    model: Any, state: Any = None, *, modes: Modes | None = None, axis_name: str | None = None
) -> tuple[Weights, Apply]:
    """An Equinox model, which acts on one example, as its arrays and a pure function of a batch.

    Args:
      model: an ``equinox.Module``, called with one example, an array or a tree of arrays, as ``model(x, key=key)``, or,
        with a state, as ``model(x, state, key=key)``, which returns (its output, the new state). Its inexact arrays become
        params; all else stays as it is. Images come as the batch holds them, [height, width, channels]: a model with
        ``eqx.nn.Conv2d``, which wants channels first, transposes them. The examples' axis, for ``eqx.nn.BatchNorm``, is
        named ``"batch"``.
      state: the ``equinox.nn.State`` that ``eqx.nn.make_with_state`` gave with the model; None without one.
      modes: as in `from_linen`, beside what ``eqx.nn.inference_mode`` sets.
      axis_name: the device axis. Example i of the batch gets the key ``fold_in(rng, i)``; where `axis_name` is given, i
        counts through the whole batch, so that the noise does not depend on the number of devices.

    Returns:
      `Weights`, copies of the model's arrays, and the `Apply`. Back to Equinox: ``eqx.combine(params, model)`` and
      ``jax.tree.unflatten(jax.tree.structure(state), model_state)``.

    Raises:
      ValueError: if `model` takes no ``key`` or has a state that is not given, if `state` is no ``equinox.nn.State``, or as
        `from_linen` says of arguments; later, if `model` does not return logits [classes].

    Example:
      >>> import equinox as eqx
      >>> weights, apply = from_equinox(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
      >>> apply(*weights, jnp.ones((2, 4)), train=False)[0].logits.shape
      (2, 3)
    """
    import equinox as eqx

    if not callable(model) or "key" not in inspect.signature(model).parameters:
        raise ValueError(f"model must be an equinox.Module whose __call__ takes key; {type(model).__name__} does not.")
    parts = jax.tree.leaves(model, is_leaf=lambda part: isinstance(part, eqx.nn.StateIndex))
    if state is None and any(isinstance(part, eqx.nn.StateIndex) for part in parts):
        raise ValueError("state must be given beside a model that has one: both from eqx.nn.make_with_state(Model)(…).")
    if not (state is None or isinstance(state, eqx.nn.State)):
        raise ValueError(f"state must be the equinox.nn.State of eqx.nn.make_with_state; got {type(state).__name__}.")
    training, inferring = _modes_of(
        model, "model", modes, taken=("key", *(() if state is None else ("state",))), settable=("inference",)
    )
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    state_leaves, state_structure = jax.tree.flatten(state)

    def apply(params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: Rng = None) -> Prediction:
        in_mode = eqx.nn.inference_mode(eqx.combine(params, static), value=not train)
        inputs = jax.tree.map(jnp.asarray, inputs)
        batch = jax.tree.leaves(inputs)[0].shape[0]
        keys = key_per_example(rng, batch, axis_name) if train and rng is not None else None

        def one(x: Tree, key: Rng, old: Any) -> tuple[Any, Any]:
            mode = training if train else inferring
            return (in_mode(x, key=key, **mode), None) if state is None else in_mode(x, old, key=key, **mode)

        all_of_them = jax.vmap(one, in_axes=(0, 0, None), out_axes=(0, None), axis_name="batch")
        result, new = all_of_them(inputs, keys, jax.tree.unflatten(state_structure, model_state))
        return _outputs(result, model), tuple(jax.tree.leaves(new)) if train else model_state

    return Weights(_copies(weights), _copies(tuple(state_leaves))), apply


def _modes_of(
    network: Any, name: str, modes: Modes | None, taken: tuple[str, ...] = (), settable: Collection[str] = ()
) -> tuple[dict, dict]:
    """The keywords that say while training, and those while inferring; an error for what this module could not set."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = list(inspect.signature(network.__call__).parameters.values())
    # The first is the inputs; a variadic one may take anything and tells nothing.
    others = {one.name: one for one in found[1:] if one.kind not in variadic and one.name not in taken}
    wanted = {who: TRAINING[who] for who in others if who in TRAINING} if modes is None else dict(modes)
    for who, parameter in others.items():
        if who in wanted:
            continue
        if parameter.default is parameter.empty:
            if found[1] is parameter and "state" in taken:  # Equinox hands the state on by its place
                continue
            raise ValueError(
                f"{name}.__call__ must take the inputs and, at most, arguments that say whether it trains; "
                f"{type(network).__name__} also takes {who}. Wrap it in one that sets {who}, or name it in modes."
            )
        # None or a function is no mode; a bool, a word or a number may be one.
        if modes is None and (isinstance(parameter.default, bool | str | int) or who == "mode"):
            raise ValueError(
                f"modes must tell whether {who} of {type(network).__name__}.__call__ says that the network trains: "
                f"modes={{{who!r}: value while training}} if so, modes={{}} if not; got None."
            )
    fields = [
        who for who in TRAINING if isinstance(getattr(network, who, None), bool) and who not in (*wanted, *settable)
    ]
    if modes is None and fields:
        raise ValueError(
            f"modes cannot set {fields[0]}, which {type(network).__name__} has as a field: it would be "
            f"{getattr(network, fields[0])} while training and while inferring. Make it an argument of __call__; or, if it "
            "is to stay so, say modes={}, or name the arguments there are."
        )
    if unknown := [who for who in wanted if who not in others and not any(one.kind in variadic for one in found)]:
        raise ValueError(f"modes must name arguments of {type(network).__name__}.__call__; it has no {unknown[0]!r}.")
    pairs = both_modes(wanted)
    return {who: pair[0] for who, pair in pairs.items()}, {who: pair[1] for who, pair in pairs.items()}


def both_modes(modes: Modes) -> dict[str, tuple[Any, Any]]:
    """By argument: its value while training, and otherwise."""
    for who, value in modes.items():
        if not (isinstance(value, bool) or (isinstance(value, tuple) and len(value) == 2)):
            raise ValueError(
                f"modes[{who!r}] must be a bool, or a pair (value while training, value otherwise); got {value!r}."
            )
    return {who: value if isinstance(value, tuple) else (value, not value) for who, value in modes.items()}


def _in_the_form_of(old: Tree, new: Tree) -> Tree:
    """The new values in the old tree: what a pass left out stays, what only this pass has goes, and sown values replace.

    ``Module.sow`` appends to the tuple that is there, so that its old entries stand before the new ones.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {name: _in_the_form_of(value, new[name]) if name in new else value for name, value in old.items()}
    if isinstance(old, tuple) and isinstance(new, tuple) and len(new) > len(old):
        appended = all(one is other for one, other in zip(old, new, strict=False))
        return new[-len(old) :] if appended and old else new
    return new


def _set_flags(nnx: ModuleType, model: Any, *, train: bool, asked: bool) -> None:
    """What a model's own parts hold as a bool under one of the usual names, which NNX sets for two of them alone."""
    for _, part in nnx.iter_modules(model) if asked else ():
        for who, value in TRAINING.items():
            if isinstance(vars(part).get(who), bool):
                setattr(part, who, value if train else not value)


def _import_nnx() -> ModuleType:
    try:
        from flax import nnx
    except (AttributeError, ImportError) as error:
        raise ImportError(
            f"from_nnx needs flax.nnx; flax {version('flax')} with jax {version('jax')} has no working one: {error}. "
            "flax 0.12.8 goes with jax 0.10.2 and fails from 0.11.1 on: a newer jax wants a newer flax."
        ) from error
    return nnx


def _outputs(result: Any, network: Any) -> Outputs:
    return outputs_of(result, type(network).__name__)


def _copies(tree: Tree) -> Tree:
    """The arrays on buffers of their own, which a step may donate without taking the model's; never weakly typed."""
    return jax.tree.map(lambda array: jnp.array(array, dtype=array.dtype, copy=True), tree)
