#!/bin/sh
# The receiver where there is no holesync: reads commands and records from stdin, a
# line each, and prints answers in order on stdout. docs/remote.md has both. What a tool
# says of a failure becomes part of an answer. words.sh comes first.
# shellcheck disable=SC2154 # plain is what decode leaves

main() {
    prepare
    temp='' command='' unsynced=''
    trap 'clean' EXIT
    trap 'exit 20' HUP INT TERM PIPE
    probe
    set -f
    while read -r verb words; do
        # shellcheck disable=SC2086 # a word has nothing in it that is split or expanded
        set -- $words
        case $verb in
        base) base "$@" ;;
        list) list ;;
        dir) make_directory "$@" ;;
        link) make_link "$@" ;;
        attr) set_attributes "$@" ;;
        sums) sums "$@" ;;
        file) file "$@" ;;
        through) through "$@" ;;
        end)
            sync_names
            say end
            exit 0
            ;;
        *) fatal "an unknown command: $verb" ;;
        esac
    done
    exit 12
}

# Ends the run: the stream is out of order, or has no reader any more.
fatal() {
    say "fatal $*"
    exit 11
}

clean() {
    [ -z "$command" ] || halt
    [ -z "$temp" ] || rm -rf "$temp" 2>/dev/null
}

# Runs a tool, and keeps what it says in $said.
try() {
    said=$(exec "$@" 2>&1)
}

# Fails, with what could not be done to a file in $why, and why: tools tell that behind a
# colon, and dd has lines with its counts behind it.
cannot() {
    said=${said##*: }
    why="cannot $1: ${said%%
*}"
    return 1
}

# --- what the tools here can do, which is tried out ---------------------------

probe() {
    [ $((1 << 40)) = 1099511627776 ] || lacks 'sh that counts in 64 bits'
    for tool in dd cat chmod cut find grep id ln mkdir mv readlink rm; do
        command -v $tool >/dev/null 2>&1 || lacks $tool
    done
    mute=status=none
    dd if=/dev/null of=/dev/null $mute 2>/dev/null || mute=
    exact=iflag=fullblock,count_bytes
    found=$(printf abcdefgh | {
        dd bs=3 count=5 $exact $mute 2>/dev/null
        printf .
        cat
    })
    [ "$found" = abcde.fgh ] || lacks "dd that takes $exact"
    skip=iflag=fullblock,skip_bytes,count_bytes
    dd if=/dev/null of=/dev/null $skip $mute 2>/dev/null || lacks "dd that takes $skip"
    seek=oflag=seek_bytes
    dd if=/dev/null of=/dev/null seek=1 $seek conv=notrunc $mute 2>/dev/null || lacks "dd that takes $seek"
    move='mv -f'
    mv --help 2>&1 | grep -q -e -T && move='mv -f -T'
    times=no
    can_touch @1 && times=seconds
    can_touch @1.5 && times=nanoseconds
    stamp=%Y
    case $(stat -c %.9Y . 2>/dev/null) in *.*) stamp=%.9Y ;; esac
    lists=no
    [ -n "$(find . -prune -exec stat -c "%f $stamp %u" {} + 2>/dev/null)" ] && lists=yes
    sums=no
    [ "$lists:$(printf abc | sha256sum 2>/dev/null | cut -c 1-16)" = yes:ba7816bf8f01cfea ] && sums=yes
    digs=no
    fallocate --help 2>&1 | grep -q -e --dig-holes && digs=yes
    bulk=no
    [ "$(perl -e 'print 1 << 40' 2>/dev/null)" = 1099511627776 ] && bulk=yes
    user=$(id -u)
}

# Whether touch takes a time. Nothing can be below the name of a device, so touch
# fails in any case, and only its message tells.
can_touch() {
    command -v touch >/dev/null 2>&1 && ! touch -m -d "$1" /dev/null/none 2>&1 | grep -q -i 'invalid\|option\|usage'
}

# --- names --------------------------------------------------------------------

# Enters the directory that everything is relative to. "file": the path may also be
# the name of the single file that is sent. "sync": names are to be on storage at the end.
# "force": what others use is written, too.
base() {
    names=$4 guard=$5
    decode_path "$3"
    named=
    parent=${plain%/*}
    if [ -d "$plain" ]; then
        cd -P "$plain" 2>/dev/null || refuse 'this directory cannot be entered with the rights of its user there'
    elif [ "$1" = file ]; then
        [ -d "$parent/" ] || refuse 'No such file or directory: create the directory that it is to go to first'
        cd -P "$parent/" 2>/dev/null || refuse 'its directory cannot be entered with the rights of its user there'
        named=yes
    elif [ -e "$plain" ] || [ -L "$plain" ]; then
        refuse 'is not a directory, and more than one file is to go there'
    elif [ "$2" = dry ]; then
        named=absent
    else
        { try mkdir "$plain" && cd -P "$plain" 2>/dev/null; } || cannot 'create the directory' || refuse "$why"
        named=new
    fi
    here=$(pwd -P)
    what=${named:-directory}
    [ "$what" != yes ] || [ ! -b "./${plain##*/}" ] || what=device
    say "base $what $(umask) $user $times $lists $sums $digs $bulk $(free_room)"
}

# Prints how many bytes are free here, or "-" where nothing tells.
free_room() {
    # shellcheck disable=SC2046 # these are numbers
    set -- $(stat -f -c '%a %S' . 2>/dev/null)
    # shellcheck disable=SC2046
    [ $# = 2 ] || set -- $(df -P -k . 2>/dev/null | {
        read -r _
        read -r _ _ _ free _
        echo "$free" 1024
    })
    case $#:$1$2 in
    2:*[!0-9]*) echo - ;;
    2:*) echo $(($1 * $2)) ;;
    *) echo - ;;
    esac
}

refuse() {
    say "refused $1"
    exit 3
}

# Lists what is below the names that follow: type and mode in hex, size, time, owner,
# name, and two slashes, in which no name ends.
list() {
    set --
    while IFS= read -r word && [ "$word" != // ]; do
        decode "$word"
        set -- "$@" "$plain"
        [ $# -lt 500 ] || {
            stat_all "$@"
            set --
        }
    done
    [ $# = 0 ] || stat_all "$@"
    # This also ends a record that was broken off.
    say //
    say listed
}

stat_all() {
    find "$@" -exec stat -c "%f %s $stamp %u %g %U/%G/ %n//" {} + 2>/dev/null
}

# Whether a symlink stands where a directory must be: nothing is written through it.
is_blocked() {
    rest=${1#./}
    passed=.
    while :; do
        case $rest in */*) ;; *) return 1 ;; esac
        passed=$passed/${rest%%/*}
        rest=${rest#*/}
        [ ! -L "$passed" ] || return 0
    done
}

make_directory() {
    decode "$1"
    why=
    if is_blocked "$plain"; then
        why='failed a symlink stands where its directory must be'
    elif make_way "$plain" && { [ -d "$plain" ] || try mkdir "$plain" || cannot 'create the directory'; }; then
        renamed "$plain"
        # The directory is filled first, and given its permissions last.
        { [ -w "$plain" ] && [ -x "$plain" ]; } || chmod u+rwx "$plain" 2>/dev/null
        why='done'
    fi
    say "$why"
}

# Removes what is no directory where one must be, unless somebody uses it; $why tells.
make_way() {
    [ -L "$1" ] || {
        [ ! -d "$1" ] && [ -e "$1" ] || return 0
        device=''
        ! is_busy "$1" || return 1
        ! is_kept "$1" || {
            why='failed it is in the way of a directory'
            return 1
        }
    }
    try rm -f "$1" || cannot 'remove what is in the way of the directory'
}

# Whether what is there is not replaced by something of another kind: the user named it, or
# it lies where devices do.
is_kept() {
    [ "$named" != yes ] || return 0
    case $here/${1#./} in
    /dev/shm/*) return 1 ;;
    /dev/*) return 0 ;;
    esac
    return 1
}

# Whether a directory stays where something else must be.
is_full() {
    is_kept "$1" || [ -n "$(find "$1/." ! -name . -prune 2>/dev/null)" ]
}

# Words: "same" where a symlink with this target has its attributes already, time,
# user (name, number), group (name, number), temp file, path, target.
make_link() {
    decode "$7"
    new=$plain
    decode "$8"
    path=$plain
    decode "$9"
    if is_blocked "$path" || { [ -d "$path" ] && [ ! -L "$path" ] && is_full "$path"; }; then
        say 'failed cannot be made a symlink: a directory is in the way'
    elif [ -L "$path" ] && [ "$(readlink "$path" && echo .)" = "$plain
." ]; then
        missing=
        [ "$1" = same ] || link_attributes "$2" "$3" "$4" "$5" "$6" "$path"
        finished
    else
        temp=$new
        if { try ln -s -- "$plain" "$temp" || cannot 'create the symlink'; } &&
            link_attributes "$2" "$3" "$4" "$5" "$6" "$temp" && replace "$path"; then
            finished
            temp=
        else
            give_up
        fi
    fi
}

# A touch that cannot set the time of a symlink itself is no failure.
link_attributes() {
    missing=
    give 'chown -h' "$2" "$3" "$6" || [ "$user" != 0 ] || lacking owner
    give 'chgrp -h' "$4" "$5" "$6" || lacking group
    [ "$1" = - ] || touch -h -m -d "@$1" "$6" 2>/dev/null || :
}

# Renames the temp file: at any time there is the old file or the new one. $why tells of a
# failure.
replace() {
    if [ -d "$1" ] && [ ! -L "$1" ]; then
        try rmdir "$1"
    elif [ "$move" = 'mv -f' ] && [ -L "$1" ] && [ -d "$1" ]; then
        try rm -f "$1"
    fi || cannot replace || return 1
    # shellcheck disable=SC2086 # these are the name of a tool and its options
    try $move "$temp" "$1" || cannot replace || return 1
    renamed "$1"
}

# Remembers that a name was made, and has those in another directory on storage.
renamed() {
    [ "$names" = sync ] || return 0
    [ "$unsynced" = "${1%/*}" ] || sync_names
    unsynced=${1%/*}
}

# A sync that takes no names does it for all there is.
sync_names() {
    if [ -n "$unsynced" ] && command -v sync >/dev/null 2>&1; then
        sync "$unsynced" 2>/dev/null || try sync ||
            cannot "sync the directory $here/${unsynced#./}" || fatal "$why"
    fi
    unsynced=
}

set_attributes() {
    decode "$7"
    if is_blocked "$plain" || [ -L "${plain%/.}" ]; then
        say 'failed a symlink is in the way'
    else
        attributes "$@"
        finished
    fi
}

# Words: mode, time, user (name, number), group (name, number), path. "-" changes
# nothing. $missing: what could not be set. A program that does not get its owner or group
# runs as nobody else.
attributes() {
    decode "$7"
    mode=$1 missing=
    give chown "$3" "$4" "$plain" || {
        # Only root is asked to give files away.
        [ "$user" != 0 ] || lacking owner
        [ -d "$plain" ] || [ "$mode" = - ] || mode=$(printf %05o $((mode & ~04000)))
    }
    give chgrp "$5" "$6" "$plain" || {
        lacking group
        [ -d "$plain" ] || [ "$mode" = - ] || mode=$(printf %05o $((mode & ~02000)))
    }
    [ "$mode" = - ] || chmod "$mode" "$plain" 2>/dev/null || lacking mode
    [ "$2" = - ] || touch -m -d "@$2" "$plain" 2>/dev/null || lacking time
}

lacking() {
    missing=${missing:+$missing, }$1
}

# Answers a command that has done its work.
finished() {
    if [ -n "$missing" ]; then say "unset $missing"; else say 'done'; fi
}

# Changes user or group, by name where the name exists here.
give() {
    whose=$plain
    decode "$2"
    name=$plain plain=$whose
    set -- "$1" "$name" "$3" "$4"
    [ "$3" = - ] || $1 "$2" "$4" 2>/dev/null || $1 "$3" "$4" 2>/dev/null
}

# --- content ------------------------------------------------------------------

# Prints the SHA-256 of the blocks in the ranges (first, count) that follow.
sums() {
    decode "$2"
    seen=$(look_at "$plain")
    while read -r first count && [ "$first" != . ]; do
        while [ "$count" -gt 0 ]; do
            # There is a line for each block, also for one that cannot be hashed.
            dd if="$plain" bs="$1" skip="$first" count=1 $mute 2>/dev/null | sha256sum || echo -
            first=$((first + 1))
            count=$((count - 1))
        done
    done
    say summed
}

# Prints what changes with a file.
look_at() {
    stat -c '%d %i %s %y %z' "$1" 2>/dev/null
}

# Reads the head of the next record: its kind and its count of bytes.
record() {
    IFS= read -r kind && IFS= read -r count || exit 12
    case $count in '' | *[!0-9]* | ???????????????????*) fatal "a record of \"$count\" bytes" ;; esac
}

# Words: fresh or inplace, sync or nosync, whether zeros become a hole or stay
# allocated (dense: there are none), size, attributes as above, temp file, path.
file() {
    how=$1 sync=$2 zeros=$3 size=$4
    decode "${12}"
    path=$plain
    decode "${11}"
    kind='' unread=0 kept=''
    if ! open "$path" "$plain" || ! receive; then
        give_up
        case $kind in STOP | END) ;; *) drain ;; esac
    elif [ -n "$kept" ] && [ "$(look_at "$path")" != "$seen" ]; then
        why='failed changed while it was being updated; it was left alone'
        give_up
    elif [ "$device" = yes ]; then
        say 'done'
    elif [ -n "$temp" ] && is_busy "$path"; then
        give_up
    else
        attributes "$5" "$6" "$7" "$8" "$9" "${10}" "$out"
        if [ -z "$temp" ] || replace "$path"; then
            finished
            temp=
        else
            give_up
        fi
    fi
}

# Answers why there is no new file.
give_up() {
    clean
    temp=
    say "$why"
}

# Sets $out, where the content goes: a new temp file, or the file itself.
open() {
    device=
    out=$1
    why=
    if is_blocked "$1"; then
        why='failed a symlink stands where its directory must be'
    elif [ -b "$1" ] && is_kept "$1" && { [ ! -L "$1" ] || [ "$named" = yes ]; }; then
        device=yes how=inplace
        room=$(blockdev --getsize64 "$1" 2>/dev/null || echo "$size")
        [ "$room" -ge "$size" ] || why="failed the device holds $room bytes and the image has $size; nothing was written"
    elif is_missing_node "$1"; then
        why='failed there is no such device, and a file in its place would be of no use: set the device up first (lsblk shows which there are)'
    elif [ "$how:$named" = inplace:yes ] && [ -L "$1" ] && [ -f "$1" ]; then
        # As a device, the file that the user named is found through symlinks.
        out=$(readlink -f "$1" && echo .)
        out=${out%?.}
        opens "$out" || cannot 'write in place'
    elif [ -L "$1" ] || [ ! -e "$1" ]; then
        how=fresh
    elif [ -d "$1" ] && is_full "$1"; then
        why='failed there is a directory where a file must go; remove it first'
    elif [ ! -f "$1" ] && [ ! -d "$1" ] && is_kept "$1"; then
        why='failed is neither a regular file nor a block device'
    elif [ ! -f "$1" ]; then
        how=fresh
    elif [ "$how" = inplace ] && ! opens "$1"; then
        cannot 'write in place'
    fi
    if [ -n "$why" ] || is_busy "$1"; then return 1; fi
    if [ "$how" = fresh ]; then
        out=$2
        create "$2" || cannot 'create the temp file of' || return 1
        temp=$2
        [ ! -f "$1" ] || [ -L "$1" ] || belongings "$1" "$2"
    elif [ -z "$device" ] && { [ -u "$1" ] || [ -g "$1" ]; }; then
        # What the old content could do ends with it.
        chmod ug-s "$1" 2>/dev/null
    fi
    doing='write'
    [ "$how" = fresh ] || doing='write in place'
    # Before any data: some file systems allocate ahead of a file that grows.
    long=$device
    [ "$how:$zeros" = fresh:dense ] || make_long || return 1
    allocated=
    if [ "$zeros" = allocated ] && [ "$size" != 0 ] && [ -z "$device" ]; then
        if fallocate -l "$size" "$out" 2>/dev/null; then allocated=yes; fi
    fi
}

# Whether a file can be written; $said tells why not.
opens() {
    { true >>"$1"; } 2>/dev/null || said=$({ true >>"$1"; } 2>&1)
}

# Whether a device should have this name and is not there.
is_missing_node() {
    [ ! -e "$1" ] || return 1
    link=
    [ ! -L "$1" ] || link=$(readlink "$1")
    case $here/${1#./} in
    /dev/shm/*) return 1 ;;
    /dev/*) return 0 ;;
    esac
    case $link in /dev/*) ;; *) return 1 ;; esac
}

# Whether somebody uses what is there, and that matters; $why tells. Perl can ask the system
# for a device that nobody holds.
is_busy() {
    [ "$guard" != force ] || return 1
    [ "$device" = yes ] || { [ -f "$1" ] && [ ! -L "$1" ]; } || return 1
    # shellcheck disable=SC2016 # these are variables of perl
    if ! in_use "$1" '' && [ "$device:$bulk" = yes:yes ]; then
        perl -e 'use Fcntl; exit(!sysopen(my $device, $ARGV[0], O_RDWR | O_EXCL) && $! == 16)' "$1" ||
            who='it is held (mounted elsewhere?)'
    fi
    [ -n "$who" ] || return 1
    why="failed is in use: $who; stop that first, or write all the same with --force-in-use"
}

# Gives a temp file the ACL of the old file, or none if that has none, as far as there is a
# tool for it. It is for its owner alone until it gets its mode: that is the mask, too.
belongings() {
    cp --attributes-only --preserve=mode "$1" "$2" 2>/dev/null ||
        { getfacl -p -c "$1" | setfacl --set-file=- "$2"; } 2>/dev/null || :
    chmod 600 "$2"
}

# Creates a file, for its owner alone until it is complete; $said tells why it cannot.
create() {
    umask=$(umask)
    umask 077
    set -C
    { true >"$1"; } 2>/dev/null || said=$({ true >"$1"; } 2>&1)
    status=$?
    set +C
    umask "$umask"
    [ $status = 0 ] && [ -f "$1" ] && [ ! -L "$1" ]
}

# Gives the file its length: dd cuts or lengthens a file to where it seeks, in whole
# blocks only, so the block is a byte. Nothing is copied.
make_long() {
    [ -z "$long" ] || return 0
    try dd if=/dev/null of="$out" bs=1 seek="$size" count=0 $mute || cannot 'set the length of' || return 1
    long=yes
}

# Reads the records of one file. Fails when it cannot be written, or the sender stops in the
# middle; $why tells. Then $kind is that of the last record, and $unread how many bytes of it
# were not read.
receive() {
    at=0 synced='' dig='' records=0
    while record; do
        records=$((records + 1)) unread=0
        [ "$kind" != DATA ] || unread=$count
        # Where there are many records, one process of perl for all of them is faster.
        if [ $bulk:$records = yes:8 ]; then
            take_many || return 1
            records=0
        fi
        case $kind in
        DATA) put ;;
        HOLE) hole ;;
        KEEP) keep ;;
        DIG) dig=$digs ;;
        STOP) why='failed the source could not be read to its end' && return 1 ;;
        END) break ;;
        *) fatal "an unknown record: $kind" ;;
        esac || return 1
        at=$((at + count))
    done
    [ "$count:$at" = "$at:$size" ] || fatal "the records make $at bytes, not $size"
    if [ "$sync" = sync ] && [ -z "$synced" ]; then
        try dd if=/dev/null of="$out" conv=notrunc,fsync $mute || cannot "$doing" || return 1
    fi
    why='failed its length came out wrong'
    [ -n "$device" ] || [ -n "$(exec find "$out" -prune -size "${size}c" 2>/dev/null)" ] || return 1
    # Zeros that were sent for short holes. Where no holes can be dug they stay.
    [ "$dig" != yes ] || fallocate -d "$out" 2>/dev/null || :
}

put() {
    conv=notrunc
    if [ "$sync" = sync ] && [ $((at + count)) = "$size" ]; then
        conv=notrunc,fsync synced=yes
    fi
    try dd bs=1048576 count="$count" $exact of="$out" seek="$at" $seek conv=$conv || {
        count_unread
        cannot "$doing"
    }
}

# Sets $unread to how much of the record dd has left, as it counts what it read: whole blocks, and
# a shorter one at the end. That of BusyBox counts nothing where it waits for storage in vain.
count_unread() {
    blocks=${said% records in*}
    blocks=${blocks##*
}
    case $blocks in
    'dd: failed to open '* | "dd: can't open "* | "dd: $out: Invalid argument") ;;
    "dd: $out: "* | 'dd: closing '*) unread=0 ;;
    '' | *[!0-9+]*) fatal "$here/${path#./} cannot be written: ${said##*: }" ;;
    *+0) unread=$((count - ${blocks%+0} * 1048576)) ;;
    *) unread=0 ;;
    esac
}

# Writes the data of many records, and skips holes for which nothing has to be done.
# Leaves the head of the first other record in $kind and $count.
take_many() {
    passes=no
    needs_zeros || passes=yes
    [ $passes = no ] || make_long || return 1
    # shellcheck disable=SC2016 # these are variables of perl
    left=$(PERL5OPT='' PERL_UNICODE='' perl -e '
        my ($out, $at, $passes, $kind, $count) = @ARGV;
        sub line {
            my $line = "";
            while (sysread STDIN, my $byte, 1) {
                return $line if $byte eq "\n";
                $line .= $byte;
                last if length $line > 18;
            }
            exit 12;
        }
        sub part {
            my $got = sysread STDIN, $_[0], $count < 1048576 ? $count : 1048576;
            exit 12 unless $got;
            $count -= $got;
            return $got;
        }
        sub failed {
            my $why = $!;
            part(my $bytes) while $kind eq "DATA" && $count > 0;
            print "$kind $count $at: $why\n";
            exit 11;
        }
        open my $file, "+<", $out or failed;
        while ($kind eq "DATA" || $kind eq "HOLE" && $passes eq "yes") {
            sysseek $file, $at, 0 or failed;
            $at += $count;
            while ($kind eq "DATA" && $count > 0) {
                my $got = part(my $bytes);
                for (my $put = 0; $put < $got;) {
                    my $some = syswrite $file, $bytes, $got - $put, $put;
                    failed unless defined $some;
                    $put += $some;
                }
            }
            ($kind, $count) = (line, line);
            exit 12 unless $count =~ /^[0-9]+$/;
        }
        close $file or failed;
        print "$kind $count $at\n";
    ' "$out" "$at" $passes "$kind" "$count")
    status=$?
    kind=${left%% *} unread=0
    case $status in
    0) ;;
    11)
        said=$left
        cannot "$doing" || return 1
        ;;
    *) exit 12 ;;
    esac
    left=${left#* }
    count=${left% *}
    at=${left#* }
}

# Copies bytes that the old file has already.
keep() {
    [ "$how" = fresh ] || return 0
    kept=yes
    try dd if="$path" bs=1048576 skip="$at" $skip count="$count" \
        of="$out" seek="$at" $seek conv=notrunc $mute || cannot 'copy what stays of'
}

hole() {
    make_long && { ! needs_zeros || zero; }
}

# Whether zeros have to be written: a new file has them where nothing is written.
needs_zeros() {
    [ "$how" = inplace ] || [ "$zeros:$allocated" = allocated: ]
}

zero() {
    if [ "$device" = yes ]; then
        blkdiscard -z -o "$at" -l "$count" "$out" 2>/dev/null && return
    elif [ "$zeros" != allocated ] && [ "$digs" = yes ]; then
        # A hole that reaches the end of the file takes the rest of its page along.
        rest=0
        [ $((at + count)) != "$size" ] || rest=$(((4096 - size % 4096) % 4096))
        fallocate -p -o "$at" -l $((count + rest)) "$out" 2>/dev/null && return
    fi
    try dd if=/dev/zero bs=1048576 count="$count" $exact of="$out" seek="$at" $seek conv=notrunc $mute ||
        cannot "$doing"
}

# Reads the rest of the records of a file that failed.
drain() {
    while :; do
        [ "$unread" = 0 ] || dd bs=1048576 count="$unread" $exact of=/dev/null $mute 2>/dev/null || fatal 'reading failed'
        record
        unread=0
        case $kind in
        DATA) unread=$count ;;
        STOP | END) return ;;
        esac
    done
}

# --- a command in the place of the file ---------------------------------------

# Words: size, destination, command. The command reads the whole image; what it prints
# goes to stderr, since stdout is for answers.
through() {
    HOLESYNC_SIZE=$1
    decode_path "$2"
    HOLESYNC_DEST=$plain
    export HOLESYNC_SIZE HOLESYNC_DEST
    decode "$3"
    temp=$(mktemp -d 2>/dev/null) || fatal 'a temporary directory could not be made'
    mkfifo "$temp/image" 2>/dev/null || fatal 'a pipe for the command could not be made'
    group=
    command -v setsid >/dev/null 2>&1 && group=setsid
    $group sh -c "$plain" <"$temp/image" >&2 &
    command=$!
    # The pipe is open until the command is stopped: the command must not take the end
    # of a broken stream for the end of the image.
    exec 9>"$temp/image"
    whole=
    if (expand) >&9; then whole=yes; else halt; fi
    exec 9>&-
    wait $command
    status=$?
    command=
    case $status:$whole in
    0:yes) say 'done' ;;
    0: | 137:) fatal 'the command did not read the whole image, or the image broke off and it was stopped' ;;
    *) fatal "the command ended with status $status" ;;
    esac
    clean
    temp=
}

# Kills the command and what it started. It may not be in its own group yet.
halt() {
    { [ -n "$group" ] && kill -KILL -"$command"; } 2>/dev/null || kill -KILL "$command" 2>/dev/null
}

# Writes the plain bytes of the image that the records describe.
expand() {
    at=0
    while record; do
        case $kind in
        DATA) dd bs=1048576 count="$count" $exact $mute 2>/dev/null ;;
        HOLE) dd if=/dev/zero bs=1048576 count="$count" $exact $mute 2>/dev/null ;;
        END) break ;;
        *) exit 12 ;;
        esac || exit 1
        at=$((at + count))
    done
    [ "$at" = "$count" ] && [ "$at" = "$HOLESYNC_SIZE" ]
}

main
