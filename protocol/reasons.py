"""Why an update was refused, failed or was taken back: every code that a device gives, with what it means and what to do about it.

Codes are stored and sent, never renamed. A device gives no other (`named`); console and command line group by them and explain them with
these sentences; `python -m protocol.reasons` makes docs/reasons.md of them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

#: What a code becomes that is not listed: a newer device may know more than this server.
UNLISTED = "unlisted"
#: The code of a device that took the release back before, and refuses it since.
BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Reason:
    """One code."""

    code: str
    #: When it is given.
    stage: str
    #: What happened, a full sentence.
    meaning: str
    #: What an operator can do, a full sentence.
    advice: str


_OFFER, _TRUST, _DOWNLOAD = "when it was offered", "when its signatures were checked", "while it was fetched"
_INSTALL, _PROBE, _PEOPLE, _BACK = "while it was installed and tried", "while it ran on trial", "by people or the server", "on the way back"

_ALL = (
    Reason("old-release", _OFFER, "Its counter is below the floor of the line.", "Assign a newer release; floors never fall."),
    Reason(
        BLOCKED,
        _OFFER,
        "The device took this release back before.",
        "Read why; when that is mended: `mooring device offer-again`, or `mooring campaign create --again`.",
    ),
    # trust
    Reason(
        "arbitrary-software", _TRUST, "The image repository does not name the file.", "Treat it as an attack: who changed the assignment?"
    ),
    Reason(
        "bad-signature", _TRUST, "Too few of the trusted keys signed the metadata.", "Check who publishes; compare `mooring keys status`."
    ),
    Reason("rollback", _TRUST, "Metadata older than what the device has seen was served.", "Look for a restored backup or an old mirror."),
    Reason("freeze", _TRUST, "The metadata's time has run out.", "Check that the server signs and that the way to it is no stale cache."),
    Reason("mix-and-match", _TRUST, "Parts of different publications were served together.", "Look at mirrors and caches; publish again."),
    Reason("malformed-metadata", _TRUST, "The metadata is not what its format allows.", "Compare the versions of server and agent."),
    Reason("missing-metadata", _TRUST, "A part of the metadata could not be fetched.", "Check the server and the way to it."),
    Reason("endless-data", _TRUST, "More bytes came than were announced.", "Treat the mirror or the way to it as hostile."),
    Reason(
        "slow-retrieval",
        _TRUST,
        "The transfer was slower than a device waits for.",
        "Check the link; another mirror may be slowed on purpose.",
    ),
    Reason("wrong-device", _TRUST, "The assignment is for another device.", "Treat it as an attack: assignments are made per device."),
    Reason("wrong-group", _TRUST, "The configuration is for another group.", "Move the device to that group, or assign the group's own."),
    Reason(
        "wrong-hardware", _TRUST, "The release is not made for this type of device.", "Release a variant for the type, or correct the type."
    ),
    Reason("requirements", _TRUST, "It needs a newer firmware or agent than this device has.", "Update those first."),
    Reason(
        "trust", _TRUST, "What was offered is not what the trusted keys signed.", "Read the device's text; tell whoever runs the server."
    ),
    # downloading
    Reason("hash_mismatch", _DOWNLOAD, "The bytes are not the ones that were signed.", "Check mirrors, caches and the server's disk."),
    Reason("bad-range", _DOWNLOAD, "The server answered a resumed download with other bytes.", "Check proxies and caches on the way."),
    Reason("download_lost", _DOWNLOAD, "A file that had come is not there any more.", "Offer it again; check the device's disk."),
    Reason("transfer_budget", _DOWNLOAD, "Far more bytes came than were planned.", "Find out who breaks connections off; offer it again."),
    Reason(
        "delta_failed",
        _DOWNLOAD,
        "The delta does not make the new file.",
        "The server withdraws it; the device took or waits for the whole file.",
    ),
    Reason("base_damaged", _DOWNLOAD, "The file that the delta builds on changed on the disk.", "Check the device's disk."),
    Reason("not-on-stick", _DOWNLOAD, "The stick is for other devices.", "Make one for this device's group."),
    Reason(
        "stick_incomplete", _DOWNLOAD, "The stick lacks a part of the bundle.", "Make the bundle again and remove the stick only when told."
    ),
    Reason("stick_lost", _DOWNLOAD, "The stick was removed too early.", "Insert it again."),
    Reason("link_lost", _DOWNLOAD, "The link broke off.", "Nothing; the device goes on when it is back."),
    Reason("transfer", _DOWNLOAD, "The transfer failed.", "Read the device's text; check the link."),
    Reason("not-found", _DOWNLOAD, "The server has no such file.", "Check the server's storage; offer the release again."),
    # installing
    Reason("manifest_invalid", _INSTALL, "The release's manifest cannot be read.", "Build the release again."),
    Reason("manifest_mismatch", _INSTALL, "The manifest does not fit the signed metadata or the model file.", "Build the release again."),
    Reason("bad_release", _INSTALL, "The release holds files that a slot has no place for.", "Build the release again."),
    Reason(
        "file_mismatch", _INSTALL, "A file of the slot is not the one that the manifest names.", "Offer it again; check the device's disk."
    ),
    Reason("disk_full", _INSTALL, "The disk has too little room.", "Free space on the state folder's disk, then offer it again."),
    Reason("disk-full", _INSTALL, "The disk of the agent's memory is full.", "Free space on the state folder's disk, then offer it again."),
    Reason("disk_error", _INSTALL, "The disk failed.", "Check the device's disk; replace worn-out flash."),
    Reason("disk", _INSTALL, "Metadata could not be kept on the disk.", "Check the device's disk."),
    Reason("store-failed", _INSTALL, "The agent's memory could not be written.", "Check the disk and who owns the state folder."),
    Reason("slot_damaged", _INSTALL, "The slot is not complete any more.", "Offer it again; check the device's disk."),
    Reason("golden_invalid", _INSTALL, "The golden vectors are missing or cannot be read.", "Build the release again."),
    Reason(
        "golden_mismatch",
        _INSTALL,
        "The model's answers differ from the golden vectors.",
        "Compare runtime versions; widen no tolerance blindly.",
    ),
    Reason("load_failed", _INSTALL, "No runtime here loads the model.", "Compare the model's operators with the device's runtimes."),
    Reason(
        "infer_failed",
        _INSTALL,
        "The model loads and fails when it answers.",
        "Try the model on this type of device before it is released.",
    ),
    Reason("no_backend", _INSTALL, "No runtime for the model is usable here.", "Install one: the extra `litert` or `onnx` of the agent."),
    Reason("accelerator_fallback", _INSTALL, "The wanted accelerator is not used.", "Check its driver, or unset `runtime.require`."),
    Reason(
        "crashed", _INSTALL, "The model killed the process that tried it.", "Try it on this type of device; report the runtime's crash."
    ),
    Reason(
        "probe_failed", _INSTALL, "The process that tried the model gave no answer.", "Read the device's text; run `mooring-agent doctor`."
    ),
    Reason("error", _INSTALL, "Something failed that has no code of its own.", "Read the device's text."),
    Reason("backend", _INSTALL, "A runtime failed.", "Read the device's text."),
    Reason("device", _INSTALL, "The device could not do it.", "Read the device's text."),
    Reason("invalid", _INSTALL, "A part of the release is malformed.", "Build the release again."),
    Reason("bad_output", _INSTALL, "The model's outputs are not what its manifest says.", "Correct the manifest; build the release again."),
    Reason("not_finite", _INSTALL, "The model answered with numbers that are none.", "Check the export; such an answer never passes."),
    Reason("out_of_range", _INSTALL, "The model answered beyond what its manifest allows.", "Check the export and the manifest's bounds."),
    Reason(
        "input_mismatch", _INSTALL, "The source's frames or windows do not fit the model's input.", "Correct the pipeline or the release."
    ),
    Reason("timeout", _INSTALL, "The model gave no answer in time.", "Give slow boards more time: `update.self_test_s`."),
    Reason("self_test_failed", _INSTALL, "The self-test failed.", "Read the device's text."),
    Reason("engine_down", _INSTALL, "No inference process could be reached.", "Read the device's conditions."),
    Reason("stopped", _INSTALL, "The agent was ending.", "Nothing; it goes on after the start."),
    Reason("no_model", _INSTALL, "There is no release to run.", "Assign one."),
    # probing
    Reason(
        "backend_not_released", _PROBE, "It runs on a back end that the release does not name.", "Check the accelerator, or release for it."
    ),
    Reason("inference_down", _PROBE, "The new model stopped running.", "Read the device's conditions."),
    Reason("inference_crashed", _PROBE, "The inference process died with the new model.", "Try the model on this type of device."),
    Reason(
        "error_rate", _PROBE, "More inferences failed than with the release before.", "Compare inputs and manifest with the release before."
    ),
    Reason("latency_budget", _PROBE, "It is slower than its own budget.", "Make it smaller, or raise the budget with open eyes."),
    Reason(
        "latency_worse",
        _PROBE,
        "It is slower than the release before allows.",
        "Make it smaller, or let the release's `probe` say why not.",
    ),
    Reason("throughput_worse", _PROBE, "Fewer frames per second than with the release before.", "Check the source too; offer it again."),
    Reason("constant_output", _PROBE, "Nearly every answer is the same.", "Check preprocessing and labels of the release."),
    Reason("memory_budget", _PROBE, "It uses more memory than its budget.", "Make it smaller, or raise the budget with open eyes."),
    Reason("memory_growth", _PROBE, "Memory grew while it ran.", "Look for a leak in the runtime's version."),
    Reason("temperature_limit", _PROBE, "The device grew too hot.", "Cool the device, lower `max_fps`, or take a smaller model."),
    Reason(
        "temperature_worse",
        _PROBE,
        "The device grew hotter than with the release before allows.",
        "Lower `max_fps`, or take a smaller model.",
    ),
    Reason("probe_timeout", _PROBE, "Too few frames came for a verdict.", "Check the sources; no frames is no success."),
    # people
    Reason("withdrawn", _PEOPLE, "The assignment was withdrawn.", "Nothing."),
    Reason("superseded", _PEOPLE, "Another release was assigned meanwhile.", "Nothing; look at that one."),
    Reason("consent", _PEOPLE, "Somebody refused it.", "Ask them; assign it again."),
    Reason("exhausted", _BACK, "The device started too often in one step without getting further.", "Check its power; offer it again."),
    Reason("rollback_failed", _BACK, "The old slot did not run again.", "The device runs what passes its tests; offer a good release."),
    Reason("journal_damaged", _BACK, "The memory of the update was unreadable.", "Nothing; the slots decided what runs."),
    Reason(UNLISTED, _BACK, "The reason is not on this list.", "Read the device's text; report it as a bug of Mooring."),
)

#: By code.
REASONS: Mapping[str, Reason] = MappingProxyType({one.code: one for one in _ALL})


def named(code: str) -> str:
    """The code when it is listed, else `UNLISTED`."""
    return code if code in REASONS else UNLISTED


def explained(code: str) -> str:
    """What the code means and what to do, for people; empty when it is not listed."""
    reason = REASONS.get(code)
    return "" if reason is None else f"{reason.meaning} {reason.advice}"


def blocked_by(code: str) -> str:
    """What the text of a device that refuses as `blocked` begins with, when it took the release back for this code."""
    return f"{BLOCKED}: {code}:"


def as_page() -> str:
    """The list as a Markdown page."""
    lines = [
        "# Why was my update refused?",
        "",
        "A device that refuses a release, fails it or takes it back says why with a code and a text with what was seen and wanted. Console",
        "and `mooring campaign show` group devices by the code. After any of these the release before keeps running.",
        "",
        "Made from the list itself by `python -m protocol.reasons`; a test fails when this page is old.",
    ]
    for stage in dict.fromkeys(one.stage for one in _ALL):
        lines += ["", f"## Given {stage}", "", "| code | what happened | what to do |", "|---|---|---|"]
        lines += [f"| `{one.code}` | {one.meaning} | {one.advice} |" for one in _ALL if one.stage == stage]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_page())
