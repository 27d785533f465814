"""Several networks of one shape that learn in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..data import Normalisation
from ..records import Diverged
from ..spec.dynamics import Circuit
from .moving import Learned, MovingRule, NotStoredOf, learn_together

OWN = {"beta", "lr", "weight_decay", "momentum"}  # the settings in which rules may differ


class SomeDiverged(Diverged):
    """Numbers of some networks are not finite. ``found`` holds what each of the others found out, and in the place of
    one that diverged why; its network is as the batch before left it."""

    def __init__(self, found: Sequence[Learned | NotStoredOf]) -> None:
        self.found = list(found)
        reasons = [f"network {r}: {of}" for r, of in enumerate(found) if isinstance(of, NotStoredOf)]
        super().__init__("; ".join(reasons))


class Replicas:
    """Rules of one kind on networks of one shape, which learn together: a parameter study, or several seeds.

    On a CPU each network has a core for itself, while others wait for none, so that networks too small for several
    cores use all of them. Each becomes bit for bit what its rule alone would make of it.

    Args:
        rules: EP rules with ``lr=``, or CEP rules, each on a network of its own. They may differ in ``beta``, ``lr``,
            ``weight_decay`` and ``momentum``.

    Raises ValueError or TypeError if the rules do not go together.
    """

    def __init__(self, rules: Sequence[MovingRule]) -> None:
        if isinstance(rules, MovingRule) or not all(isinstance(rule, MovingRule) for rule in rules):
            raise TypeError("rules must be a list of EP rules with lr=, or of CEP rules")
        if not rules:
            raise ValueError("rules must hold at least one rule")
        self.rules = list(rules)
        self._refuse_what_differs()

    def learn(
        self,
        x: Tensor,
        y: Tensor,
        orders: Tensor,
        *,
        normalise: Normalisation | None = None,
        rates: Tensor | None = None,
        signs: Tensor | None = None,
    ) -> list[Learned]:
        """As :meth:`MovingRule.learn` of each rule, all of them at once.

        Args:
            x, y, normalise: as there; all networks learn from one data set.
            orders: ``(R, N, B)`` int64, the batches of each network.
            rates: ``(R, N, connections)``.
            signs: ``(R, N)``; None: of "random_sign" those of the first network are drawn first.

        Raises:
            ValueError, TypeError: an argument does not fit; no parameter was changed.
            SomeDiverged: numbers of some networks are not finite, after all have learned as far as they can.
            KeyboardInterrupt: after the batches in work, from which the networks have learned.
        """
        self._refuse_what_differs()
        found = learn_together(self.rules, x, y, orders, normalise=normalise, rates=rates, signs=signs)
        learned = [of for of in found if isinstance(of, Learned)]
        if len(learned) < len(found):
            raise SomeDiverged(found)
        return learned

    def _refuse_what_differs(self) -> None:
        """Asked before every call: settings may be set anew, and parameters replaced."""
        first = self.rules[0]
        wanted, shape = _shared_settings(first), _shape(first.net.circuit())
        seen: dict[int, int] = {}
        for r, rule in enumerate(self.rules):
            if type(rule) is not type(first):
                kinds = f"{type(first).__name__} and {type(rule).__name__}"
                raise TypeError(f"rules must be of one kind, got {kinds} in places 0 and {r}")
            settings = _shared_settings(rule)
            for name, value in wanted.items():
                if settings[name] != value:
                    raise ValueError(f"{name} must be the same in all rules, got {value!r} and {settings[name]!r}")
            if _shape(rule.net.circuit()) != shape:
                raise ValueError(
                    f"the networks of rules 0 and {r} must have the same layers, dynamics, dtype and device"
                )
            for p in rule.net.circuit().parameters():
                if seen.setdefault(p.data_ptr(), r) != r:
                    raise ValueError(
                        f"rules {seen[p.data_ptr()]} and {r} must not share parameters, each moves its own"
                    )


def _shared_settings(rule: MovingRule) -> dict[str, object]:
    names = ["backend", "engine", "precision", *(name for name in rule.settings() if name not in OWN)]
    return {name: getattr(rule, name) for name in names} | {"has rates": rule.has_rates}


def _shape(circuit: Circuit) -> tuple[object, ...]:
    parameters = [None if p is None else (p.shape, p.dtype, p.device) for p in (*circuit.weights, *circuit.biases)]
    return circuit.structure, circuit.dynamics, circuit.free_feedback is None, parameters
