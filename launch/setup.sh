#!/usr/bin/env bash
# Makes .venv in the repository root, or keeps it when nothing that it depends on has changed.
#
#   bash launch/setup.sh [dev]        dev: the tools of launch/test.sh as well
#
# PYTHON=/path/to/python3 names the interpreter; without it the newest of 3.10 to 3.13 is taken.
# PIP_* variables count as usual; without a GPU, 4 GB are saved by
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
# The folder .venv belongs to this script: one that is half-made or out of date is made anew.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
extra=${1:-}

say() { echo "setup: $*" >&2; }

die() {
    say "error: $*"
    exit 1
}

is_suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

can_make_venvs() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# .venv may be active, and is removed before it is made anew: interpreters are those outside it.
leave_venv() {
    local folders folder outside=
    IFS=: read -ra folders <<<"$PATH"
    for folder in "${folders[@]}"; do
        [[ $folder -ef $venv/bin ]] || outside+=:$folder
    done
    PATH=${outside#:}
}

# Of an interpreter in .venv, the one that .venv was made with.
outside_venv() {
    local python=$1
    if [[ $(dirname "$python") -ef $venv/bin ]]; then
        python=$("$python" -c 'import sys; print(sys._base_executable)' 2>/dev/null) || true
        [[ ! $(dirname "$python") -ef $venv/bin ]] || python=
    fi
    echo "$python"
}

# The first suitable interpreter that can make venvs, else the first suitable one.
find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3.10 python3) candidate first=
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$(outside_venv "$PYTHON")")
    fi
    for candidate in "${candidates[@]}"; do
        is_suitable "$candidate" || continue
        first=${first:-$candidate}
        if can_make_venvs "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "$first"
}

# Debian and Ubuntu ship the venv module in a package of its own.
add_venv_module() {
    local package
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        die "$1 cannot make virtual environments; run: sudo apt-get install $package"
    fi
    say "installing $package with apt-get"
    (apt-get update -qq && apt-get install -y -qq "$package") </dev/null >/dev/null
    can_make_venvs "$1" || die "$1 still cannot make virtual environments; name another: PYTHON="
}

choose_python() {
    python=$(find_python)
    if [[ -z $python ]]; then
        die "found no Python 3.10 or newer${PYTHON:+ at PYTHON=$PYTHON}; run" \
            "'sudo apt-get install python3 python3-venv' or set PYTHON=/path/to/python3"
    fi
    can_make_venvs "$python" || add_venv_module "$python"
}

# Everything that a venv depends on. It holds absolute paths, so a moved repository counts too.
fingerprint() {
    {
        echo "$root"
        "$python" -c 'import sys; print(sys.version)'
        cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt"
    } | sha256sum
}

is_complete() { # the stamp is written last
    [[ -f $venv/$1 && $(<"$venv/$1") == "$stamp" ]] && "$venv/bin/python" -c '' 2>/dev/null
}

install() { # what, stamp file
    DS_BUILD_OPS=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --quiet --constraint "$root/constraints.txt" --editable "$1" </dev/null
    echo "$stamp" >"$venv/$2"
}

make_venv() {
    say "making .venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    say "installing the package: minutes, and about 5 GB with PyTorch's GPU libraries"
    install "$root" .complete
}

add_dev_tools() {
    say "installing the development tools"
    install "${root}[dev]" .complete-dev
}

# For the tests on simulated GPUs, which are skipped without one.
add_compiler() {
    say "installing g++ with apt-get"
    (apt-get update -qq && apt-get install -y -qq g++) </dev/null >/dev/null 2>&1 ||
        say "could not; tests/test_simulated_gpu.py will be skipped until there is a C++ compiler"
}

leave_venv
choose_python
stamp=$(fingerprint)
(
    # Two at once: the second waits, then finds the work done. Opened for writing, as NFS demands.
    flock 9
    is_complete .complete || make_venv
    if [[ $extra == dev ]] && ! is_complete .complete-dev; then
        add_dev_tools
    fi
    if [[ $extra == dev ]] && ! command -v g++ >/dev/null; then
        add_compiler
    fi
) 9<>"$root/constraints.txt"
