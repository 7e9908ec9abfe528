"""The Open Inference Protocol for programs beside the agent: raw tensors in and out of the model that the fleet keeps current."""
