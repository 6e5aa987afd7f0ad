#!/bin/sh
# Stores the program of the initiator in a private directory here, and runs it.
#
# Variables that are set before: name, that of its file; sum, its SHA-256; size, in
# bytes; send, whether the program may be sent, or only used if it is here already; keep,
# whether it stays for the next run, or nothing here may change.
# Prints "want" (then the program has to follow), and "have" before it runs the agent,
# or "none" with a reason.
# shellcheck disable=SC2154

# Makes a directory that is private to this user. One that a symlink leads to may be
# another user's.
private() {
    if [ "$keep" = yes ]; then
        mkdir -p "${1%/*}" 2>/dev/null
        mkdir -m 700 "$1" 2>/dev/null
    fi
    [ -d "$1" ] && [ ! -L "$1" ] || return 1
    # shellcheck disable=SC2012 # mode and owner are what is asked for
    case $(ls -ldn "$1" | { read -r mode _ owner _ && echo "$mode $owner"; }) in
    drwx------*" $(id -u)") ;;
    *) return 1 ;;
    esac
}

# Whether a file is the program, byte for byte.
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
    if [ "$keep$send" = noyes ] && ! { [ -n "$dir" ] && genuine "$dir/$name"; }; then
        dir=
    fi
    if [ -n "$dir" ]; then
        file=$dir/$name
    elif [ "$send" = yes ] && temporary=$(mktemp -d); then
        file=$temporary/$name
        [ "$keep" = no ] || echo "note $why: the program is not kept"
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
    # The file system may be mounted so that nothing can be run.
    if ! runs "$file" && [ -z "$temporary" ] && temporary=$(mktemp -d); then
        echo 'note nothing can be run in the cache directory (noexec?): the program is run from a temporary one'
        cp "$file" "$temporary/$name"
        file=$temporary/$name
    fi
    runs "$file" || { none 'it cannot be run here (noexec?)' && return; }
    # Another run may be storing the program at this moment: only old files go.
    if [ -n "$dir" ] && [ "$keep" = yes ]; then
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
