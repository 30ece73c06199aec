#!/usr/bin/env bash
# Every check: format, lint, types, tests. All of them run; the exit status is the first failure's.
#
#   bash launch/test.sh [pytest arguments]        such as -m long, or tests/learning -x
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
bash launch/setup.sh dev || exit

status=0
summary=()

check() { # name, command ...
    local name=$1 code=0
    shift
    echo "== $name"
    "$@" || code=$?
    if ((code == 0)); then
        summary+=("passed  $name")
    else
        summary+=("FAILED  $name (exit status $code)")
    fi
    if ((status == 0)); then
        status=$code
    fi
}

bin=$PWD/.venv/bin
check "ruff format" "$bin/ruff" format --check .
check "ruff check" "$bin/ruff" check .
check "mypy" "$bin/mypy"
# one worker per core; a file stays on one, as its fixtures train models
check "pytest" "$bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder "$@"

echo "== summary"
printf '%s\n' "${summary[@]}"
exit "$status"
