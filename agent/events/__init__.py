"""From answers of a model to events that people subscribe to: pure, by the time that the answers carry."""
