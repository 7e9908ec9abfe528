"""What devices of a group have in common: one vector per hour from all of them, and how long it is looked at; pure (DRIFT 5.6, ADR 0041).

A shift that all share is small in each device and the same in all. Each member's hour is compared with the nearest mode of its own
reference, r = s - mean, and weighs by what that mode is sure of, P = the inverse of its covariance: the sum of P is the weight of the hour,
and (sum P)^-1 sum P r is the shift that explains all members best. A camera that trembles in one coordinate says little there, and the
quiet ones are not drowned. What a single device may add is bounded: beyond what its own clean hours reach its part is shortened, so one
broken device moves an hour of its group by little, however far it is off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleet.monitoring.detectors import DoubleArray, IntArray
from protocol.sketches.looks import Look, LookReference, Modes
from protocol.sketches.reference import DeviceReference

#: Rows are hours: one, three, six and twenty-four of them. Set on sites of the study alone.
GROUP_LOOKS = (
    Look("group-1h", 1, is_classes=False, modes=1, share=0.25),
    Look("group-3h", 3, is_classes=False, modes=1, share=0.25),
    Look("group-6h", 6, is_classes=False, modes=1, share=0.25),
    Look("group-24h", 24, is_classes=False, modes=1, share=0.25),
)
HOURS_PER_DAY = 24


@dataclass(frozen=True, eq=False)
class Member:
    """What a device's hours are weighed by."""

    reference: DeviceReference
    #: Of its reference, the one whose stretch is nearest to an hour.
    look: LookReference
    modes: Modes
    #: float64[modes, k], float64[modes, k, k] in the k coordinates of the look.
    means: DoubleArray
    precisions: DoubleArray
    #: T² from which on its part is shortened.
    limit: float

    @property
    def coordinates(self) -> IntArray:
        """Where its coordinates stand in a summary: int64[k]."""
        return self.reference.coordinates[self.look.coordinates]


def member_of(reference: DeviceReference) -> Member:
    """The device as part of a group."""
    hours = HOURS_PER_DAY / reference.per_day
    wide = [(one, one.modes) for one in reference.looks if isinstance(one.modes, Modes) and not one.look.is_classes]
    look, modes = min(wide, key=lambda pair: abs(np.log(pair[0].look.subwindows * hours)))
    roots = [cloud.inverse / cloud.deviation for cloud in modes.clouds]
    means = np.stack([cloud.mean for cloud in modes.clouds])
    return Member(reference, look, modes, means, np.stack([root.T @ root for root in roots]), look.tail.q)


def merged(members: Sequence[Member], summaries: DoubleArray, *, of: int) -> DoubleArray:
    """The shift that explains one hour of these members best: float64[d] of their summaries float64[members, d].

    0 in coordinates that no member's reference has, and in all when no member knows anything. `of`: members of the group. When fewer
    report, their own chance averages out less, and what they say is drawn towards 0 by so much: it is never more surprising than the same
    shift in all of them.
    """
    d = summaries.shape[1]
    weight, pull = np.zeros((d, d)), np.zeros(d)
    for member, summary in zip(members, summaries, strict=True):
        its = member.reference.filled(summary[None])[0, member.look.coordinates]
        if np.isnan(its).any():
            continue
        mode = int(member.modes.nearest(its[None])[0])
        residual, precision = its - member.means[mode], member.precisions[mode]
        part = precision @ residual
        distance = float(residual @ part)
        shortened = min(1.0, float(np.sqrt(member.limit / distance))) if distance > 0 else 1.0
        weight[np.ix_(member.coordinates, member.coordinates)] += precision
        pull[member.coordinates] += shortened * part
    held = np.flatnonzero(np.diag(weight) > 0)
    shift = np.zeros(d)
    if held.size:
        shift[held] = np.linalg.solve(weight[np.ix_(held, held)], pull[held])
    return np.asarray(shift * np.sqrt(min(1.0, len(members) / max(1, of))), dtype=np.float64)
