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
