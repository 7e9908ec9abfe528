"""Every call that an unmodified tritonclient makes of a server: `python triton_calls.py HOST:PORT`; exit 0 when all went as they should.

Run by the test beside it, in whatever environment has tritonclient.
"""

import sys

import numpy as np
import tritonclient.http as triton

MODEL = "color"
RED = np.zeros((1, 8, 8, 3), np.float32)
RED[..., 2] = 1.0
WANTED = [[0.0, 0.0, 1.0]]


def asked(array, *, binary=True):
    """The input, filled."""
    made = triton.InferInput("pixels", list(array.shape), "FP32")
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def refused(call, status, words):
    """Returns when the call is refused with these words: the client shows what the server said, not an error of its own."""
    seen = None
    try:
        call()
    except triton.InferenceServerException as error:
        seen = error
    assert seen is not None, f"nothing refused the call; wanted {status} {words}"
    assert (seen.status(), words in seen.message()) == (str(status), True), seen


def main(url):
    """Make all calls."""
    with triton.InferenceServerClient(url, concurrency=4) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.get_server_metadata()["name"] == "mooring-agent"
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1.0")
        assert not client.is_model_ready(MODEL, "2.0")
        assert not client.is_model_ready("other")
        metadata = client.get_model_metadata(MODEL)
        assert metadata["versions"] == ["1.0"]
        assert metadata["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [1, 8, 8, 3]}]
        for sent_binary in (True, False):
            for outputs in (
                None,
                [triton.InferRequestedOutput("scores", binary_data=True)],
                [triton.InferRequestedOutput("scores", binary_data=False)],
            ):
                for packing in (None, "gzip", "deflate"):
                    answer = client.infer(
                        MODEL,
                        [asked(RED, binary=sent_binary)],
                        outputs=outputs,
                        request_id="seven",
                        request_compression_algorithm=packing,
                        response_compression_algorithm=packing,
                    )
                    assert answer.as_numpy("scores").tolist() == WANTED
                    assert answer.get_response()["id"] == "seven"
        running = [client.async_infer(MODEL, [asked(RED * number)]) for number in range(20)]
        for number, one in enumerate(running):
            assert one.get_result().as_numpy("scores").tolist() == [[0.0, 0.0, float(number)]]
        refused(lambda: client.infer("other", [asked(RED)]), 404, "there are color")
        refused(lambda: client.infer(MODEL, [asked(RED)], model_version="2.0"), 404, "runs release 1.0")
        refused(lambda: client.infer(MODEL, [asked(RED[:, :4])]), 400, "wanted [1, 8, 8, 3]")
        refused(lambda: client.infer(MODEL, [asked(RED)], sequence_id=5), 400, "sequences")
        refused(lambda: client.get_model_config(MODEL), 404, "not offered")
        refused(client.get_model_repository_index, 404, "not offered")
        refused(client.get_system_shared_memory_status, 404, "not offered")
        texts = triton.InferInput("pixels", [1], "BYTES")
        texts.set_data_from_numpy(np.array([b"red"], np.object_))
        refused(lambda: client.infer(MODEL, [texts]), 400, "'BYTES'; wanted FP32")


if __name__ == "__main__":
    main(sys.argv[1])
