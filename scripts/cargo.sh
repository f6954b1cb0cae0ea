# Sourced by the other scripts: makes sure that cargo can be called, or says the one line that installs it.
if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
    . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null; then
    fetch="curl --proto '=https' -sSf https://sh.rustup.rs"
    if ! command -v curl >/dev/null; then
        fetch="python3 -c 'import urllib.request as u; print(u.urlopen(\"https://sh.rustup.rs\").read().decode())'"
    fi
    echo "cargo is missing. This line installs Rust for the current user (see https://rustup.rs):"
    echo
    echo "    $fetch | sh -s -- -y"
    echo
    answer=n
    if [ -t 0 ]; then
        printf 'Run it now? [y/N] '
        read -r answer
    fi
    case "$answer" in
        [yY]*) eval "$fetch" | sh -s -- -y && . "$HOME/.cargo/env" ;;
        *) echo "Nothing was installed. Run that line, then this script again." >&2; exit 1 ;;
    esac
fi
