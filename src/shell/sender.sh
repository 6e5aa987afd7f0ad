#!/bin/sh
# The sender where there is no holesync: lists the sources, and sends the files that
# are requested, each in a form in which zeros cost little. words.sh comes first.
# shellcheck disable=SC2154 # plain is what decode leaves

main() {
    prepare
    trap 'exit 20' HUP INT TERM PIPE
    # What tools say of a failure becomes part of an answer; what they print may be content.
    exec 3>&1 5>&2
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
    for tool in cat head readlink; do
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
    cd -P "$start" 2>/dev/null || exit 12
    decode_path "$1"
    said=$(print_list 2>&1 >&3 3>&-)
    # The status tells whether all of it could be read. The slashes end a record that
    # was broken off.
    status=$?
    say //
    IFS='
'
    for line in $said; do say "said $line"; done
    unset IFS
    say "listed $status"
}

print_list() {
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
}

# Makes the names that follow relative to this source, if it is a directory.
enter() {
    cd -P "$start" 2>/dev/null || exit 12
    decode_path "$1"
    ! [ -d "$plain" ] || cd -P "$plain" 2>/dev/null || exit 12
}

# Prints the target of a symlink: its number of bytes, and the bytes.
follow() {
    decode_path "$1"
    if link=$(readlink "$plain" 2>/dev/null && echo .); then
        link=${link%??}
        printf 'link %s\n%s\n' "${#link}" "$link"
    else
        refuse
    fi
}

# Sends a file. Words: how, its size, the blocking factor of tar, its name. The answer
# is "sent", how it really is, and the bytes, and then "done", or why they are not the file.
get() {
    decode_path "$4"
    if ! { [ -f "$plain" ] || [ -b "$plain" ]; } || ! [ -r "$plain" ]; then
        refuse
        return
    fi
    before=$(look_at)
    if [ ! -b "$plain" ] && [ "$(stat -L -c %s "$plain" 2>/dev/null)" != "$2" ]; then
        say 'failed changed since it was looked at'
        return
    fi
    { send_opened "$@" 4<"$plain"; } 2>/dev/null || refuse
}

send_opened() {
    ! in_use "$plain" writers || say "busy $who"
    [ "$1" != tar ] || counts_blocks || {
        shift
        set -- whole "$@"
    }
    say "sent $1"
    said=$(pour "$@" 2>&1 >&3 3>&-)
    status=$? at=$2 same=yes
    [ "$1" = tar ] || read -r _ at </proc/self/fdinfo/4 || at=
    left=$(($2 - ${at:-$2}))
    [ "$before" = "$(look_at)" ] || same=no
    case $1:$status in
    tar:* | gzip:0 | zstd:0) ;;
    # Its reader counts the bytes: zeros come for those that could not be read, if /proc tells
    # how many these are.
    whole:*)
        [ -n "$at" ] || [ $status:$same = 0:yes ] || broken
        [ $left -le 0 ] || head -c $left /dev/zero || broken
        ;;
    *) broken ;;
    esac
    said=${said%%
*}
    case $status:$same:$((left > 0)):$said in
    0:yes:0:*) say 'done' ;;
    *:yes:*': '*) say "cannot read: ${said##*: }" ;;
    *:yes:*) say 'failed could not be read to its end' ;;
    *) if [ -e "$plain" ]; then say 'failed changed while it was read; send a snapshot'; else refuse; fi ;;
    esac
}

# Ends the run: nobody can tell where the bytes of a file end.
broken() {
    echo "$plain changed while it was read, or could not be read to its end${said:+: ${said##*: }}" >&5
    exit 12
}

# Answers why what was listed cannot be read.
refuse() {
    if ! [ -e "$plain" ] && ! [ -L "$plain" ]; then
        say 'cannot read: No such file or directory'
    elif [ -r "$plain" ]; then
        say 'failed is something else than when it was looked at'
    else
        say 'cannot read: Permission denied'
    fi
}

# Whether tar may go by the blocks of a file: it takes one without any for a hole, which is so
# on ext4, xfs, btrfs and tmpfs.
counts_blocks() {
    [ "$(stat -L -c %b "$plain")" = 0 ] || return 0
    case $(stat -f -c %t "$plain") in ef53 | 58465342 | 9123683e | 1021994) ;; *) return 1 ;; esac
}

pour() {
    case $1 in
    whole) exec head -c "$2" <&4 ;;
    # What packs comes to its end whatever happens to the file.
    gzip) cat <&4 | gzip -1 -c ;;
    zstd) cat <&4 | zstd -1 -q -c ;;
    tar) exec tar -c -S -P -h --no-unquote -b "$3" --format=posix --hard-dereference -f - "$plain" </dev/null ;;
    esac
}

# Prints what changes with a file.
look_at() {
    stat -L -c '%d %i %s %y %z' "$plain" 2>/dev/null
}

main
