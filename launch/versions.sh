#!/usr/bin/env bash
# Runs the fast tests with the lowest versions that setup.cfg admits, and with the newest there are.
#
#   bash launch/versions.sh [pytest arguments]        such as tests/learning -x
#
# Prints a Markdown table of the versions and results (docs/results/versions.md has the last one).
# SETS="lowest newest" picks the sets, PYTHON= the interpreter. Each set gets an environment of its
# own, of about 6 GB, in a temporary folder (TMPDIR= says where) that is removed at the end. Nothing
# in the repository is touched: a copy of its files is installed and tested.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
read -ra sets <<<"${SETS:-lowest newest}"
work=$(mktemp -d "${TMPDIR:-/tmp}/versions.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # where root runs it: tests act as another user, who must read what is installed

say() { echo "versions: $*" >&2; }

# Tracked files and new ones, but no build outputs, environments or runs.
copy_source() {
    mkdir "$work/source"
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        tar -C "$root" --null --ignore-failed-read -T - -cf - | tar -C "$work/source" -xf -
}

# The lowest versions of what the package and its language models need; tools of the tests stay new.
constraints() { # set
    if [[ $1 == lowest ]]; then
        "$uv" pip compile --quiet --python "$python" --resolution lowest-direct --extra lm \
            "$work/source/setup.cfg"
    fi
}

make_venv() { # set
    say "installing the $1 versions"
    "$uv" venv --quiet --python "$python" "$work/$1"
    constraints "$1" >"$work/$1.txt"
    DS_BUILD_OPS=0 "$uv" pip install --quiet --python "$work/$1/bin/python" --upgrade \
        --constraint "$work/$1.txt" "$work/source[dev]"
}

run_tests() { # set, pytest arguments ...
    local set=$1 status=0
    shift
    say "testing with the $set versions"
    # extensions that one torch builds, or only their lock file, can make another one wait for ever
    (cd "$work/source" && TORCH_EXTENSIONS_DIR="$work/$set/extensions" \
        "$work/$set/bin/python" -m pytest "$@") 2>&1 | tee "$work/$set.log" >&2 ||
        status=$?
    tail -n 1 "$work/$set.log" | tr -d '=' >"$work/$set.result"
    return "$status"
}

# One line of the table per direct dependency, and one with the results.
table() {
    "$work/${sets[0]}/bin/python" - "$work" "${sets[@]}" <<'PY'
import configparser
import pathlib
import re
import subprocess
import sys

work, *sets = sys.argv[1:]
setup = configparser.ConfigParser()
setup.read(f"{work}/source/setup.cfg")
needed = re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.MULTILINE)
ask = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
columns = []
for name in sets:
    command = [f"{work}/{name}/bin/python", "-c", ask, *needed]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    columns.append([*found, pathlib.Path(work, f"{name}.result").read_text().strip()])
print("| |", " | ".join(sets), "|")
print("|---" * (len(sets) + 1) + "|")
for label, *cells in zip([*needed, "tests"], *columns):
    print("|", " | ".join([label, *cells]), "|")
PY
}

status=0
"$python" -m venv "$work/uv"
"$work/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv
uv=$work/uv/bin/uv
copy_source
for set in "${sets[@]}"; do
    make_venv "$set"
    run_tests "$set" "$@" || status=$?
done
"$python" --version
table
exit "$status"
