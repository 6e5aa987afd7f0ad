#!/bin/sh
# What the far side's shell runs first: it becomes the agent where a holesync is
# to be had, and otherwise says so and runs the next script that it is sent.
#
# Set before it: program, how holesync is called here, empty to call none;
# version, of the one that asks.
# shellcheck disable=SC2154

# A command that is not there (127), or cannot be run (126), leaves the next
# rung; one that ran has had its say.
try() {
    eval "$program agent"
    status=$?
    case $status in
    126 | 127) ;;
    *) exit "$status" ;;
    esac
}

# Reads a script, up to a line with a single dot. Its last line is what runs it,
# so that one that was cut off does nothing.
load() {
    script=
    while IFS= read -r line; do
        [ "$line" = . ] && return
        script="$script$line
"
    done
    exit 1
}

# Whether this processor has instructions for AES, where there is a way to know.
aes() {
    if ! grep -qi -e ^flags -e ^features /proc/cpuinfo 2>/dev/null; then
        echo unknown
    elif grep -qw aes /proc/cpuinfo; then
        echo yes
    else
        echo no
    fi
}

climb() {
    case $program in
    '') ;;
    holesync) if command -v holesync >/dev/null 2>&1; then try; fi ;;
    *) try ;;
    esac
    pushed=no
    for file in "${XDG_CACHE_HOME:-$HOME/.cache}/holesync/agent-$version-"*; do
        [ -f "$file" ] && pushed=yes
    done
    # The mark begins a line, whatever login scripts have printed.
    printf '\nholesync shell 1 %s %s %s\n' "$pushed" "$(aes)" "$(uname -sm)"
    while load; do
        eval "$script"
    done
}

climb
