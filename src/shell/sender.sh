#!/bin/sh
# The sender where there is no holesync: lists the sources, and sends the files that
# are requested, each in a form in which zeros cost little. words.sh comes first.
# shellcheck disable=SC2154 # plain is what decode leaves

main() {
    prepare
    trap 'exit 20' HUP INT TERM PIPE
    set -f
    start=$(pwd -P)
    probe
    while read -r verb words; do
        # shellcheck disable=SC2086 # a word has nothing in it that is split or expanded
        set -- $words
        case $verb in
        source) list "$1" ;;
        enter) enter "$1" ;;
        link) follow "$1" ;;
        get) get "$@" ;;
        end)
            say end
            exit 0
            ;;
        *) exit 12 ;;
        esac
    done
    exit 12
}

probe() {
    stamp=%Y
    case $(stat -c %.9Y . 2>/dev/null) in *.*) stamp=%.9Y ;; esac
    format="%f %s %b $stamp %u %g %U/%G/"
    [ -n "$(stat -c "$format" . 2>/dev/null)" ] || lacks 'stat that takes -c'
    [ -n "$(find . -prune -exec stat -c "$format" {} + 2>/dev/null)" ] || lacks 'find that takes -exec with +'
    for tool in head readlink; do
        command -v $tool >/dev/null 2>&1 || lacks $tool
    done
    sparse=no
    for tool in gzip zstd; do
        command -v $tool >/dev/null 2>&1 && sparse=$tool
    done
    tar --version 2>/dev/null | grep -q 'GNU tar' && sparse=tar
    say "sends $sparse"
}

# Lists a source and everything below it. A symlink that is named itself is followed
# to a file, and to a directory if its path means the contents.
list() {
    cd -P "$start" || exit 12
    decode_path "$1"
    contents=no
    case $plain in */ | */. | */.. | . | ..) contents=yes ;; esac
    if [ -L "$plain" ] && [ -d "$plain" ] && [ $contents = no ]; then
        stat -c "$format .//" "$plain"
    elif [ -d "$plain" ]; then
        { cd -P "$plain" && find . -exec stat -c "$format %n//" {} +; }
    elif [ -b "$plain" ]; then
        size=$(blockdev --getsize64 "$plain") && echo "$(stat -L -c %f "$plain") $size 0 0 0 0 // .//"
    else
        stat -L -c "$format .//" "$plain"
    fi
    # The status tells whether all of it could be read. The slashes end a record that
    # was broken off.
    status=$?
    say //
    say "listed $status"
}

# Makes the names that follow relative to this source, if it is a directory.
enter() {
    cd -P "$start" || exit 12
    decode_path "$1"
    ! [ -d "$plain" ] || cd -P "$plain" || exit 12
}

# Prints the target of a symlink: its number of bytes, and the bytes.
follow() {
    decode_path "$1"
    if link=$(readlink "$plain" && echo .); then
        link=${link%??}
        printf 'link %s\n%s\n' "${#link}" "$link"
    else
        say 'failed cannot be read'
    fi
}

# Sends a file. Words: how, its size, the blocking factor of tar, its name. The answer
# is "sent", how it really is, and the bytes, and then "done" or "failed".
get() {
    decode_path "$4"
    if ! { [ -f "$plain" ] || [ -b "$plain" ]; } || ! [ -r "$plain" ]; then
        say 'failed cannot be read'
        return
    fi
    before=$(look_at)
    if [ ! -b "$plain" ] && [ "$(stat -L -c %s "$plain")" != "$2" ]; then
        say 'failed changed since it was looked at'
        return
    fi
    ! in_use "$plain" writers ||
        echo "$plain is in use: $who; the copy may be inconsistent, send a snapshot" >&2
    [ "$1" != tar ] || counts_blocks || {
        shift
        set -- whole "$@"
    }
    say "sent $1"
    status=0
    pour "$@" || status=$?
    if [ $status = 0 ] && [ "$before" = "$(look_at)" ]; then
        say 'done'
        return
    fi
    # Where a file is shorter than announced, its reader cannot tell where its bytes end,
    # and the run ends. Packed bytes have an end of their own.
    case $1:$status in
    tar:* | gzip:0 | zstd:0) say 'failed changed while it was read, or could not be read to its end' ;;
    *)
        echo "$plain changed while it was read, or could not be read to its end" >&2
        exit 12
        ;;
    esac
}

# Whether tar may go by the blocks of a file: it takes one without any for a hole, which is so
# on ext4, xfs, btrfs and tmpfs.
counts_blocks() {
    [ "$(stat -L -c %b "$plain")" = 0 ] || return 0
    case $(stat -f -c %t "$plain") in ef53 | 58465342 | 9123683e | 1021994) ;; *) return 1 ;; esac
}

pour() {
    case $1 in
    whole) head -c "$2" "$plain" ;;
    gzip) gzip -1 -c <"$plain" ;;
    zstd) zstd -1 -q -c <"$plain" ;;
    tar) tar -c -S -P -h --no-unquote -b "$3" --format=posix --hard-dereference -f - "$plain" </dev/null ;;
    esac
}

# Prints what changes with a file.
look_at() {
    stat -L -c '%d %i %s %y %z' "$plain"
}

main
