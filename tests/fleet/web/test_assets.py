"""What the browser loads: vendored as recorded, small, under names that change with the content."""

import hashlib
import re
from pathlib import Path

import pytest

from fleet.web.assets import FOLDER, Assets
from fleet.web.render import TEMPLATES
from protocol.errors import NotFoundError

#: INTERFACES, Targets: bytes over the wire of a first load.
FIRST_LOAD = 100_000


def test_every_vendored_file_is_what_the_record_says():
    recorded = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (FOLDER / "vendor" / "VENDOR.md").read_text(), re.MULTILINE))
    files = {path.name for path in (FOLDER / "vendor").iterdir() if path.suffix in {".css", ".js"}}
    assert set(recorded) == files
    for name, digest in recorded.items():
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_every_vendored_package_brings_its_license():
    for name in ("bootstrap", "bootstrap-icons", "htmx", "htmx-ext-sse", "uPlot"):
        assert "ermission" in (FOLDER / "vendor" / f"{name}.LICENSE").read_text(), name


def test_the_first_load_stays_below_its_budget():
    sizes = Assets().sizes()
    assert sum(sizes.values()) <= FIRST_LOAD, sizes


def test_a_url_names_the_content_and_another_content_is_not_found():
    assets = Assets()
    url = assets.url("mooring.css")
    digest = hashlib.sha256((FOLDER / "mooring.css").read_bytes()).hexdigest()
    assert url == f"/static/mooring.{digest[:10]}.css"
    assert assets.get(url).media_type == "text/css; charset=utf-8"
    for other in ("/static/mooring.0000000000.css", "/static/mooring.css", "/static/vendor/VENDOR.md", "/static/../store.py"):
        with pytest.raises(NotFoundError):
            assets.get(other)
    with pytest.raises(LookupError):
        assets.url("missing.css")


def test_no_template_holds_an_inline_script_or_style_and_none_names_another_host():
    for path in Path(TEMPLATES).rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", text), path
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text), path
