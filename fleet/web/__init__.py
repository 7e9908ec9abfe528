"""What people and devices reach over HTTP: handlers that parse, call one service function and render."""
