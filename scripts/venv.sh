# Sourced: a Python environment with packages from PyPI, made once.
#   venv FOLDER MODULE PACKAGE...     MODULE is what can be imported when it is complete
venv() {
    folder=$1 module=$2
    shift 2
    "$folder/bin/python" -c "import $module" 2>/dev/null && return
    if ! python3 -m venv "$folder"; then
        # Debian keeps venv in a package of its own.
        $(command -v sudo || true) apt-get install -y python3-venv
        python3 -m venv "$folder"
    fi
    "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
}
