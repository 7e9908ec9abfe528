"""The demo with the user's own video, camera or model: one agent, one release, then the console."""

from pathlib import Path

from examples.demo.scenario import AGENT_SETTINGS, DIGITS, MIN_INFERENCES, make_videos, say
from examples.demo.world import World
from protocol.errors import InvalidError

CAMERA = Path("/dev/video0")
LINE = "own"
TIMEOUT_S = 300.0


def check_own(*, video: Path | None, model: Path | None, manifest: Path | None) -> None:
    """Nothing when what the user named is there and complete. Raises: InvalidError naming what is missing."""
    if (model is None) != (manifest is None):
        raise InvalidError("MODEL and MANIFEST go together.", hint="See docs/manifest.md for what a manifest says.")
    for path in (video, model, manifest):
        if path is not None and not path.is_file():
            raise InvalidError(f"There is no file {path}.")
    if model is not None and model.suffix not in {".onnx", ".tflite"}:
        raise InvalidError(f"{model.name} is no model this agent runs.", hint="Wanted: a .onnx or .tflite file.")


def run_own(world: World, *, video: Path | None, model: Path | None, manifest: Path | None, is_camera: bool) -> bool:
    """Release the user's model (else the digits) to one agent that looks at the user's video or camera; returns whether it took it.

    Raises: InvalidError when there is no camera; any MooringError when the model is refused; RuntimeError.
    """
    source: dict[str, object] = {"kind": "video", "loop": True}
    if is_camera:
        if not CAMERA.exists():
            raise InvalidError(f"CAMERA=1, but there is no {CAMERA}.", hint="Plug one in, or give VIDEO=file.mp4.")
        source = {"kind": "camera", "device": str(CAMERA)}
    else:
        source["path"] = str(video.resolve() if video else make_videos(world.root, ["own"])[0]["own"])
    file = model or DIGITS / "models" / "1.1" / "onnx" / "model.onnx"
    say(f"Importing {file.name}")
    made = world.import_model(file, manifest or DIGITS / "onnx.toml", name="own-model")
    world.add_agent(
        "own-1", device_type="own", settings=AGENT_SETTINGS, pipelines=[{"name": "front", "line": LINE, "source": source, "keep": "events"}]
    )
    world.start_agent("own-1")
    world.release(LINE, "1.0", {made: ["own"]}, note="your model")
    campaign = world.campaign(LINE, "1.0", group="default", min_inferences=MIN_INFERENCES)
    update = world.await_(
        lambda: next((one for one in world.updates_of(campaign).values() if one["state"] in {"updated", "failed"}), None),
        timeout_s=TIMEOUT_S,
        what="the agent to take or refuse the model",
    )
    print(f"  own-1: {update['state']} {update['reason']} {update['text']}")
    return bool(update["state"] == "updated")
