"""The documents on a stick: what was written is read, everything else is an InvalidError."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.bundle import (
    FORMAT,
    MAX_INDEX_BYTES,
    MAX_REPORTS,
    REPORTS_FORMAT,
    BundleIndex,
    ReportFile,
    read_bundle_index,
    read_report_file,
    write_document,
)
from protocol.errors import InvalidError
from protocol.messages import DsseEnvelope, DsseSignature

INDEX = BundleIndex(format=FORMAT, tenant="t0", group="site", created_at=1, valid_until=2, devices=("cam-1",))
ENVELOPE = DsseEnvelope(payload="e30=", payloadType="x", signatures=[DsseSignature(keyid="k", sig="c2ln")])
REPORTS = ReportFile(format=REPORTS_FORMAT, device="cam-1", reports=(ENVELOPE,))


def test_what_was_written_is_read():
    assert read_bundle_index(write_document(INDEX)) == INDEX
    assert read_report_file(write_document(REPORTS)) == REPORTS


@pytest.mark.parametrize(
    "change",
    [
        {"format": "mooring-bundle.2"},
        {"devices": ["../cam"]},
        {"devices": "cam-1"},
        {"valid_until": "soon"},
        {"tenant": None},
        {"devices": ["cam"] * 10_001},
    ],
)
def test_an_index_of_another_shape_is_refused(change):
    with pytest.raises(InvalidError):
        read_bundle_index(json.dumps(json.loads(write_document(INDEX)) | change).encode())


def test_more_reports_or_bytes_than_allowed_are_refused():
    many = ReportFile.model_construct(format=REPORTS_FORMAT, device="cam-1", reports=(ENVELOPE,) * (MAX_REPORTS + 1))
    with pytest.raises(InvalidError):
        read_report_file(many.model_dump_json().encode())
    with pytest.raises(InvalidError, match="bytes allowed"):
        read_bundle_index(b" " * (MAX_INDEX_BYTES + 1))


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_whatever_the_bytes_are_the_parsers_answer_or_refuse(data):
    for read in (read_bundle_index, read_report_file):
        try:
            read(data)
        except InvalidError:
            continue
