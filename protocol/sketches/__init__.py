"""Mergeable bounded summaries: counts on a fixed grid. Whoever adds them up, in whatever order, gets the same."""

#: The reference profile of a model in its slot; here, so that who finds none need not import how one is read.
PROFILE_NAME = "profile.cbor"
