#!/usr/bin/env bash
# Makes .venv with the package in it (editable), and with "test" also what the tests need.
# Does nothing when .venv is current. PYTHON chooses the interpreter (3.10 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-}"

say() { echo "install: $*" >&2; }
die() { say "$*"; exit 1; }

as_root=""
if [ "$(id -u)" -ne 0 ]; then as_root="sudo -n"; fi

system_install() {  # packages...; fails where nothing can be installed
    command -v apt-get >/dev/null || return 1
    if [ -n "$as_root" ] && ! $as_root true 2>/dev/null; then return 1; fi
    say "installing system packages: $*"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 || true
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@" >&2
}

pick_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "needs Python 3.10 or newer; install it, or name it: PYTHON=/path/to/python $0"
}

if [ "$extra" = test ] && ! { command -v ffmpeg && command -v ffprobe; } >/dev/null; then
    system_install ffmpeg ||
        say "ffmpeg is missing and cannot be installed from here (Debian, Ubuntu: apt-get install" \
            "ffmpeg as root); the tests of BSS Eval scores will be skipped"
fi

if [ "$extra" = test ] && ! { command -v chromium google-chrome && command -v chromedriver; } >/dev/null; then
    system_install chromium chromium-driver ||
        say "chromium and chromedriver are missing and cannot be installed from here; the tests that" \
            "drive the pages in a browser will be skipped"
fi

# What the environment was made from: a change of any of it installs again.
state="$(cat setup.cfg pyproject.toml scripts/install.sh; pwd)"
stamp() { echo ".venv/.installed${1:+-$1}"; }
for made in "$extra" test; do
    if [ -f "$(stamp "$made")" ] && [ "$(cat "$(stamp "$made")")" = "$state" ]; then exit 0; fi
done

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python="$(pick_python)"
    rm -rf .venv
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null &&
        ! "$python" -m virtualenv --version >/dev/null 2>&1; then
        system_install python3-venv ||
            die "Python's venv module is missing and cannot be installed from here; install it" \
                "(Debian, Ubuntu: apt-get install python3-venv as root) and try again"
    fi
    say "making .venv with $("$python" --version)"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv .venv
    else
        "$python" -m virtualenv -q .venv
    fi
fi
say "installing the package and what it needs into .venv (some minutes, about 5 GB)"
.venv/bin/python -m pip install -q --disable-pip-version-check -e ".${extra:+[$extra]}" >&2
if [ "$extra" = test ]; then
    # The network of MSDM is compared with its authors' package. Alone: it asks for type stubs
    # (data-science-types) that break mypy; what it does import is in the extra.
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps \
        audio-diffusion-pytorch==0.0.43 >&2
fi
printf '%s\n' "$state" > "$(stamp "$extra")"
