#!/bin/sh
# What both sides of a conversation need where there is no holesync: it is sent
# before receiver.sh and sender.sh.

prepare() {
    LC_ALL=C
    export LC_ALL
    unset CDPATH
    # What is for administrators serves others, too.
    PATH=$PATH:/usr/sbin:/sbin
}

say() {
    printf '%s\n' "$*"
}

lacks() {
    say "lacks $1"
    exit 5
}

# Leaves the bytes that a word stands for in $plain. Words are escaped for
# printf where a shell might take them apart.
decode() {
    case $1 in
    *\\*)
        plain=$(printf '%b.' "$1")
        plain=${plain%.}
        ;;
    *) plain=$1 ;;
    esac
}

# The same for a path as the user wrote it.
decode_path() {
    decode "$1"
    case $plain in
    /*) ;;
    \~) plain=${HOME:?is not set} ;;
    \~/*) plain=${HOME:?is not set}/${plain#??} ;;
    *) plain=./$plain ;;
    esac
}
