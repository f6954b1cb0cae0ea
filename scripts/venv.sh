# Sourced: a Python environment with packages from PyPI, made once.
#   venv FOLDER PACKAGE...
venv() {
    folder=$1
    shift
    # Written last: an environment whose making was interrupted, or that has other packages, is made anew.
    [ "$(cat "$folder/made-for" 2>/dev/null)" = "$*" ] && "$folder/bin/python" -c "" 2>/dev/null && return
    if ! python3 -m venv --clear "$folder"; then
        # Debian keeps venv in a package of its own.
        command -v apt-get >/dev/null || { echo "Python's venv module is missing: install it, then run this script again." >&2; exit 1; }
        $(command -v sudo || true) apt-get install -y python3-venv
        python3 -m venv --clear "$folder"
    fi
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
    echo "$*" >"$folder/made-for"
}
