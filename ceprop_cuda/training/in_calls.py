"""An epoch in calls that take many batches each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeGuard

from ..data import Batches
from ..records import Diverged
from .moving import MovingRule, NotStoredOf
from .rule import Rule
from .tally import Tally, are_classes

SECONDS = 0.1  # that a call shall take: a bar moves several times a second, and an interrupt does not wait long
MOST = 4  # times as many batches as in the last call


def takes_calls(rule: Rule, batches: object) -> TypeGuard[MovingRule]:
    """Whether the kernels take many of ``batches`` in one call, where neither is of a kind of the user's own."""
    if type(batches) is not Batches or not isinstance(rule, MovingRule) or type(rule).step is not MovingRule.step:
        return False
    return rule.moves_parameters and batches.augment is None and rule.takes_many(batches.x, batches.normalise)


def learn_in_calls(rule: MovingRule, batches: Batches, tally: Tally, where: str) -> Iterator[int]:
    """Learns from an epoch of ``batches``, counts it in ``tally``, and says from how many since the last time.

    Raises Diverged, which names the batch, if its numbers are not finite; the network is as the batch before left it.
    """
    order = batches.next_order()
    size = batches.batch_size
    whole = len(order) // size
    groups = [order[: whole * size].view(whole, size), order[whole * size :][None]]  # the last batch may be smaller
    x, targets = batches.x.contiguous(), batches.y.contiguous()  # or every call would have to make them so
    has_classes = bool(are_classes(targets)) if targets.ndim == 2 else rule.net.circuit().classes > 1
    done, together = 0, 1
    for group in groups:
        while group.numel() > 0:
            now, group = group[:together], group[together:]
            began = time.perf_counter()
            try:
                learned = rule.learn(x, targets, now, normalise=batches.normalise)
            except NotStoredOf as refusal:
                raise Diverged(f"{where}, batch {done + refusal.batch + 1}: {refusal.reason}") from None
            tally.add_learned(learned, now.numel(), has_classes)
            done += len(now)
            yield len(now)
            seconds = max(time.perf_counter() - began, 1e-6)
            together = max(1, min(MOST * together, round(together * SECONDS / seconds)))
