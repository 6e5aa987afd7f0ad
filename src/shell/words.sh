#!/bin/sh
# What receiver.sh and sender.sh have in common; it is sent before either of them.

prepare() {
    LC_ALL=C
    export LC_ALL
    unset CDPATH
    # Tools for administrators are of use to other users, too.
    PATH=$PATH:/usr/sbin:/sbin
}

say() {
    printf '%s\n' "$*"
}

lacks() {
    say "lacks $1"
    exit 5
}

# Sets $plain to the bytes that a word stands for. Words are escaped for printf where
# a shell might split or expand them.
decode() {
    case $1 in
    *\\*)
        plain=$(printf '%b.' "$1")
        plain=${plain%.}
        ;;
    *) plain=$1 ;;
    esac
}

# Sets $plain to a path as the user wrote it.
decode_path() {
    decode "$1"
    case $plain in
    /*) ;;
    \~) plain=${HOME:?is not set} ;;
    \~/*) plain=${HOME:?is not set}/${plain#??} ;;
    *) plain=./$plain ;;
    esac
}

# --- who else uses a file or device -------------------------------------------

# Whether somebody uses a file or device, as far as /proc and /sys tell; $who says who it is.
# With "writers": whether somebody may be writing it.
in_use() {
    who='' only=$2
    if [ -b "$1" ]; then
        device_in_use "$1"
    else
        file_in_use "$1"
    fi
    [ -n "$who" ]
}

# Sets $major and $minor, the numbers of a device.
number_of() {
    # shellcheck disable=SC2012,SC2046 # everything before the name is numbers and letters
    set -- $(ls -ldnL "$1" 2>/dev/null)
    case $5 in
    *,?*) major=${5%%,*} minor=${5#*,} ;;
    *) major=${5%,} minor=$6 ;;
    esac
}

# What is mounted or swapped to of a device, of its parts, and of the whole that it is a
# part of; what is made of it.
device_in_use() {
    number_of "$1"
    dir=/sys/dev/block/$major:$minor
    numbers=" $major:$minor "
    set +f
    for part in "$dir"/*/partition; do
        ! read -r number <"${part%/*}/dev" || numbers="$numbers$number "
    done 2>/dev/null
    if [ -e "$dir/partition" ] && read -r number <"$dir/../dev"; then numbers="$numbers$number "; fi
    for holder in "$dir"/holders/* "$dir"/*/holders/*; do
        [ ! -e "$holder" ] || who="/dev/${holder##*/} is made of it"
    done
    set -f
    [ ! -r /proc/self/mountinfo ] || mounted_from </proc/self/mountinfo
    [ ! -r /proc/swaps ] || swapped_to "$1" </proc/swaps
}

# Reads mountinfo. File systems with a number of their own tell the device by its name.
mounted_from() {
    while read -r _ _ number _ point rights rest; do
        case $number in
        0:*)
            rest=${rest#*- } rest=${rest#* } rest=${rest%% *}
            [ -b "$rest" ] || continue
            number_of "$rest"
            number=$major:$minor
            ;;
        esac
        case $only,$rights in writers,ro | writers,ro,*) continue ;; esac
        case $numbers in *" $number "*) who="it is mounted at $point" ;; esac
    done
}

swapped_to() {
    while read -r name _; do
        case $name in *\\*) name=$(printf '%b' "$name") ;; esac
        # shellcheck disable=SC3013 # where there is no -ef, this says no
        if [ "$name" -ef "$1" ] 2>/dev/null; then who='it is swap space'; fi
    done
}

# Loop devices, swap, and locks.
file_in_use() {
    set +f
    for backing in /sys/block/loop*/loop/backing_file; do
        name='' rights=0
        { read -r name <"$backing" && read -r rights <"${backing%/*/*}/ro"; } 2>/dev/null || continue
        # shellcheck disable=SC3013
        if [ "$name" -ef "$1" ] 2>/dev/null && [ "$only:$rights" != writers:1 ]; then
            backing=${backing%/*/*}
            who="the loop device /dev/${backing##*/} is made of it"
        fi
    done
    set -f
    [ ! -r /proc/swaps ] || swapped_to "$1" </proc/swaps
    [ ! -r /proc/locks ] || locked "$1" </proc/locks
}

# Reads mounts: sets $where to the numbers of the btrfs that a path lies in, whose files have others.
btrfs_of() {
    longest='' where=none
    while read -r _ _ number _ point rest; do
        case $rest in *' - btrfs '*) ;; *) continue ;; esac
        case $point in *\\*) point=$(printf '%b' "$point") ;; esac
        case $1 in "${point%/}"/*) ;; *) continue ;; esac
        [ ${#point} -ge ${#longest} ] || continue
        longest=$point where=$(printf %02x:%02x "${number%:*}" "${number#*:}")
    done
}

# Reads locks: number, kind, ADVISORY, READ or WRITE, process, file, first and last byte. The
# file is told by the numbers of its file system, which in btrfs are not those of the file.
# QEMU locks bytes 101 to 103 of what it writes.
locked() {
    id=$(stat -L -c '%d %i' "$1" 2>/dev/null) || return
    inode=${id#* } id=${id% *}
    major=$(((id >> 8) & 4095)) minor=$(((id & 255) | ((id >> 12) & 1048320)))
    where=$(printf %02x:%02x $major $minor)
    [ "$major:$(stat -f -c %t "$1" 2>/dev/null)" != 0:9123683e ] ||
        btrfs_of "$(readlink -f "$1")" </proc/self/mountinfo 2>/dev/null || return
    while read -r _ kind _ rights process file first last; do
        [ "$file" = "$where:$inode" ] || continue
        if [ "$only:$rights" = writers:READ ]; then
            if [ "$last" = EOF ] || [ "$first" -gt 103 ] || [ "$last" -lt 101 ]; then continue; fi
        fi
        case $kind:$process in
        OFDLCK:* | *:-1) who='a program holds a lock on it (QEMU?)' ;;
        POSIX:* | FLOCK:*) who="process $process holds a lock on it" ;;
        esac
    done
}
