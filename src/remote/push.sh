#!/bin/sh
# Keeps the program that asks in a private directory here, and becomes it.
#
# Set before it: name, of its file; sum, its SHA-256; size, in bytes; send,
# whether it may be sent, or only used if it is here already.
# Says "want" (then the program has to follow), and "have" before it becomes the
# agent, or "none" with a reason.
# shellcheck disable=SC2154

# A directory of ours alone. One that a link leads to may be somebody else's.
private() {
    mkdir -p "${1%/*}" 2>/dev/null
    mkdir -m 700 "$1" 2>/dev/null
    [ -d "$1" ] && [ ! -L "$1" ] || return 1
    # shellcheck disable=SC2012 # mode and owner are what is asked for
    case $(ls -ldn "$1" | { read -r mode _ owner _ && echo "$mode $owner"; }) in
    drwx------*" $(id -u)") ;;
    *) return 1 ;;
    esac
}

# Whether a file is the program, to the last bit.
genuine() {
    [ -f "$1" ] && [ ! -L "$1" ] && [ "$(sha256sum <"$1" | { read -r found _ && echo "$found"; })" = "$sum" ]
}

runs() {
    "$1" --version >/dev/null 2>&1 </dev/null
}

none() {
    [ -z "$temporary" ] || rm -rf "$temporary"
    echo "none $1"
}

fetch() {
    rm -f "$1"
    dd bs=1048576 count="$size" $exact of="$1" 2>/dev/null && genuine "$1" && chmod 700 "$1"
}

push() {
    trap '[ -z "$temporary" ] || rm -rf "$temporary"' EXIT
    trap 'exit 20' HUP INT TERM
    temporary=
    command -v sha256sum >/dev/null 2>&1 || { none 'there is no sha256sum to check it with' && return; }
    exact=iflag=fullblock,count_bytes
    dd if=/dev/null of=/dev/null $exact 2>/dev/null || { none "there is no dd that takes $exact" && return; }
    base=${XDG_CACHE_HOME:-${HOME:-}/.cache}
    case $base in /.cache) dir= ;; /*) dir=$base/holesync ;; *) dir= ;; esac
    why='there is no cache directory'
    if [ -n "$dir" ] && ! { private "$dir" && [ -w "$dir" ]; }; then
        why='the cache directory (holesync in XDG_CACHE_HOME or ~/.cache) is not for this user alone, and writable'
        dir=
    fi
    if [ -n "$dir" ]; then
        file=$dir/$name
    elif [ "$send" = yes ] && temporary=$(mktemp -d); then
        file=$temporary/$name
        echo "note $why: the program is not kept"
    else
        none 'there is no directory to keep it in' && return
    fi
    if [ -n "$temporary" ] || ! genuine "$file"; then
        [ "$send" = yes ] || { none 'what is here is another' && return; }
        echo want
        new=$(mktemp "${file%/*}/new-XXXXXX") || new=${file%/*}/new-$$
        if ! fetch "$new" || ! mv -f "$new" "$file"; then
            rm -rf "$new" "$temporary"
            echo 'lost it did not arrive whole'
            exit 1
        fi
    fi
    # A directory may be mounted so that nothing in it can be run.
    if ! runs "$file" && [ -z "$temporary" ] && temporary=$(mktemp -d); then
        echo 'note nothing can be run in the cache directory (noexec?): the program is run from a temporary one'
        cp "$file" "$temporary/$name"
        file=$temporary/$name
    fi
    runs "$file" || { none 'it cannot be run here (noexec?)' && return; }
    # Another run may be bringing it at this moment: only old ones of those.
    if [ -n "$dir" ]; then
        for old in "$dir"/agent-*; do
            [ "$old" = "$dir/$name" ] || rm -f "$old"
        done
        find "$dir" -name 'new-*' -mtime +0 -exec rm -f {} +
    fi
    echo have
    "$file" agent
    exit $?
}

push
