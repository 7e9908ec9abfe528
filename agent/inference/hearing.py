"""What the control process hears from the inference process: every message checked before it is believed.

By pydantic, which the control process carries for its settings: one message comes for each frame, and it is read in microseconds.
"""

from typing import Annotated

from pydantic import Field, TypeAdapter

from agent.inference.messages import Answer, Beat, FromWorker, Prediction, Ready, Sampled

FROM_WORKER: TypeAdapter[Ready | Answer | Beat | Prediction | Sampled] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])
