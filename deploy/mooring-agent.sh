#!/bin/sh
exec /opt/mooring/bin/python -P -m agent.cli "$@"
