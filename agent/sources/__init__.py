"""Where frames and readings come from: cameras, streams, files, folders, sensors."""
