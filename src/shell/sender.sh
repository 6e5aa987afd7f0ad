#!/bin/sh
# The sending side where there is no holesync: tells what there is, and sends the
# files that are asked for, each in a form that keeps its zeros cheap. words.sh
# comes before it.
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

# What a source is, and everything below it. A symlink that is named itself is
# followed to a file, and to a directory if what is in it is meant.
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
    # Whether all of it could be looked at; and a record that was broken off ends.
    status=$?
    say //
    say "listed $status"
}

# Names are relative to this source from here on; to nothing, if it is a file.
enter() {
    cd -P "$start" || exit 12
    decode_path "$1"
    ! [ -d "$plain" ] || cd -P "$plain" || exit 12
}

# A symlink: so many bytes, and those.
follow() {
    decode_path "$1"
    if link=$(readlink "$plain" && echo .); then
        link=${link%??}
        printf 'link %s\n%s\n' "${#link}" "$link"
    else
        say 'failed cannot be read'
    fi
}

# A file: how, its size, the blocking factor of tar, its name. The answer is "sent"
# and the bytes, and then how it went.
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
    say sent
    status=0
    pour "$@" || status=$?
    if [ $status = 0 ] && [ "$before" = "$(look_at)" ]; then
        say 'done'
        return
    fi
    # Nobody can tell where the bytes of a file end that is shorter than was said:
    # there is no going on. What packs says itself where it ends.
    case $1:$status in
    tar:* | gzip:0 | zstd:0) say 'failed changed while it was read, or could not be read to its end' ;;
    *)
        echo "$plain changed while it was read, or could not be read to its end" >&2
        exit 12
        ;;
    esac
}

pour() {
    case $1 in
    whole) head -c "$2" "$plain" ;;
    gzip) gzip -1 -c <"$plain" ;;
    zstd) zstd -1 -q -c <"$plain" ;;
    tar) tar -c -S -P -h --no-unquote -b "$3" --format=posix --hard-dereference -f - "$plain" </dev/null ;;
    esac
}

# What tells that a file was changed.
look_at() {
    stat -L -c '%d %i %s %y %z' "$plain"
}

main
