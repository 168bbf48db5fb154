#!/bin/sh
# Opens the page; creates the environment first if needed. ./start.sh --demo adds the demo's training to the queue.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 1
for python in python3.13 python3.12 python3.11 python3 python; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        exec "$python" "$here/starter.py" "$@"
    fi
done
if command -v uv >/dev/null 2>&1; then
    exec uv run --no-project --python 3.12 "$here/starter.py" "$@"
fi
echo "start.sh: no Python 3.10 or later was found: install Python 3.12 from https://www.python.org, or uv from https://docs.astral.sh/uv" >&2
exit 1
