"""Golden vectors of every model made here and in the arm64 tree, compared, and what the self-test of each machine says of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from arm64 import answering
from arm64.models import MODELS, VECTORS, Model, make_slot, noise_vectors, picture_vectors
from arm64.tree import Tree

from runtime.base import Array, BackendOptions
from runtime.golden import Goldens, Tolerance, decode, encode, merge
from runtime.probe import run_goldens

#: Of one golden file, which has 4 MiB at most, outputs of two machines included.
MAX_INPUT_BYTES = 3_700_000
Verdict = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of one model over all vectors of a kind, here against there."""

    kind: str
    output: str
    vectors: int
    values: int
    different: int
    #: In steps of integers, else absolute.
    largest: float
    is_integer: bool
    tolerance: Tolerance

    def __str__(self) -> str:
        unit, allowed = (
            ("LSB", f"{self.tolerance.lsb}") if self.is_integer else ("", f"{self.tolerance.atol:.3g} + {self.tolerance.rtol:g} |x|")
        )
        seen = f"{self.different} of {self.values} differ, at most {self.largest:.3g} {unit}" if self.different else "bit-equal"
        return f"{self.vectors} {self.kind:9} {self.output[-32:]:32} {seen:45} allowed {allowed} {unit}".rstrip()


@dataclass(slots=True)
class Subject:
    """One golden file of a model, of both machines."""

    name: str
    model: Model
    file: Path
    #: Which vectors are of which kind.
    kinds: Mapping[str, slice]
    ours: Goldens
    #: With `session.x64quantprecision`, where the runtime has it.
    exact: Goldens | None
    theirs: Goldens | None = None
    #: Where answers in the tree are outside of the tolerance of ours.
    outside: list[str] = field(default_factory=list)

    def differences(self) -> list[Difference]:
        """Kind by kind, output by output."""
        return list(_differences(self.ours, self.answered(), self.kinds))

    def exact_differences(self) -> list[Difference]:
        """Likewise, from what was computed here with full precision of int8."""
        return [] if self.exact is None else list(_differences(self.exact, self.answered(), self.kinds))

    def merged(self) -> Goldens:
        """One golden file with both keys."""
        return merge(self.ours, self.answered())

    def answered(self) -> Goldens:
        """The golden file of the tree."""
        assert self.theirs is not None, "the tree was not asked yet"
        return self.theirs


def subjects_in(folder: Path, data: Path | None) -> list[Subject]:
    """Every model that can be had here with its golden vectors of this machine; `data`: the folder with real models and pictures."""
    return [
        subject
        for model in MODELS
        if data is not None or not model.needs_data
        for subject in _subjects_of(model, folder / model.name, data or folder / "no-data")
    ]


def _subjects_of(model: Model, folder: Path, data: Path) -> Iterator[Subject]:
    """One golden file with vectors of every kind, or one for each kind where they do not fit into one."""
    file = model.write(folder, data)
    manifest = model.manifest(file)
    kinds = {"pictures": picture_vectors(manifest, data), "noise": noise_vectors(manifest)}
    size = sum(array.nbytes for vectors in kinds.values() for vector in vectors for array in vector.values())
    parts = [kinds] if size <= MAX_INPUT_BYTES else [{kind: vectors} for kind, vectors in kinds.items()]
    for number, part in enumerate(parts, 1):
        vectors = [vector for some in part.values() for vector in some]
        ours = run_goldens(file, vectors)
        exact = run_goldens(file, vectors, options=BackendOptions(exact_int8=True)) if model.variant == "onnx" else None
        starts = {kind: VECTORS * index for index, kind in enumerate(part)}
        slices = {kind: slice(start, start + VECTORS) for kind, start in starts.items()}
        yield Subject(f"{model.name}.{number}", model, file, slices, ours, exact)


def ask(subjects: list[Subject], tree: Tree) -> None:
    """Let the tree answer the golden vectors made here: it records its own and says where they are outside of their tolerance."""
    folder = tree.shared / "x86"
    for subject in subjects:
        make_slot(folder / subject.name, subject.model, subject.file, encode(subject.ours))
    outside = json.loads(tree.python("-m", "arm64.answering", "record", tree.inside(folder)))
    for subject in subjects:
        subject.theirs = decode((folder / subject.name / answering.RECORDED).read_bytes())
        subject.outside = outside[subject.name]


def verdict_here(subject: Subject, goldens: Goldens, folder: Path) -> Verdict:
    """What the self-test of this machine says of a slot with these golden vectors."""
    make_slot(folder / subject.name, subject.model, subject.file, encode(goldens))
    return answering.tested(folder)[subject.name]


def verdict_in(tree: Tree, subject: Subject, goldens: Goldens, name: str) -> Verdict:
    """What the self-test in the tree says of a slot with these golden vectors; `name` is free for a folder of it."""
    folder = tree.shared / name
    make_slot(folder / subject.name, subject.model, subject.file, encode(goldens))
    verdicts: Mapping[str, Verdict] = json.loads(tree.python("-m", "arm64.answering", "test", tree.inside(folder)))
    return verdicts[subject.name]


def table(subjects: list[Subject]) -> str:
    """Model by model what is equal, what is not, and who said yes."""
    lines = []
    for subject in subjects:
        verdict = f"{len(subject.outside)} outside of their tolerance" if subject.outside else "all inside their tolerance"
        lines.append(f"{subject.model.name}, {' and '.join(subject.merged().outputs)}: {verdict}")
        lines += [f"  {difference}" for difference in subject.differences()]
    return "\n".join(lines)


def _differences(ours: Goldens, theirs: Goldens, kinds: Mapping[str, slice]) -> Iterator[Difference]:
    (one,), (other,) = ours.outputs.values(), theirs.outputs.values()
    for kind, which in kinds.items():
        for name in one[0]:
            here, there = (np.stack([row[name] for row in rows[which]]) for rows in (one, other))
            off = np.abs(here.astype(np.float64) - there.astype(np.float64))
            different = int(np.count_nonzero(off))
            is_integer = here.dtype.kind in "iu"
            yield Difference(kind, name, len(here), off.size, different, float(off.max()), is_integer, ours.tolerances[name])


def off_by_one_step(goldens: Goldens, key: str) -> Goldens:
    """The same with one integer of every output under the key moved by one step."""

    def moved(array: Array) -> Array:
        made = array.copy()
        made.flat[0] += 1 if made.flat[0] < np.iinfo(made.dtype).max else -1
        return made

    rows = tuple({name: moved(array) for name, array in row.items()} for row in goldens.outputs[key])
    return Goldens(goldens.inputs, {**goldens.outputs, key: rows}, goldens.tolerances)
