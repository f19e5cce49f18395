#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# ext4, xfs and btrfs, mounted by this kernel and written without a pause, on a disk that is being replicated. The
# destination is killed at random moments once it is in sync: what it has must be what a power cut leaves. The kernel
# replays the journal, every file that was fsynced and then named has its content, and the file system's own checker
# finds nothing; it does when some blocks of that image are put back to what they were before.
# test: timeout=400
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/stream-functions.sh
source "$e2e_top/test/e2e/stream-functions.sh"
PATH+=:/usr/sbin:/sbin
requires drover nbdkit jq perl findmnt mkfs.ext4 e2fsck mkfs.xfs xfs_repair mkfs.btrfs btrfs
requires_fuse

seed=${DROVER_SEED:-$(date +%Y%m%d)}
cuts=${DROVER_CUTS:-4}
echo "seed $seed (DROVER_SEED), $cuts cuts each (DROVER_CUTS)"
RANDOM=$seed

# make TYPE IMAGE
declare -A size=([ext4]=128M [xfs]=320M [btrfs]=256M)
make() {
    truncate -s "${size[$1]}" "$2"
    case $1 in
        ext4) mkfs.ext4 -q "$2" ;;
        xfs) mkfs.xfs -q "$2" ;;
        # With two copies of its metadata it would read the good one.
        btrfs) mkfs.btrfs -q -m single "$2" >/dev/null ;;
    esac
}
# check TYPE IMAGE: without changing it; its exit status tells whether anything is wrong
check() {
    case $1 in
        ext4) e2fsck -f -n "$2" ;;
        xfs) xfs_repair -n -f "$2" ;;
        btrfs) btrfs check --readonly "$2" ;;
    esac
}
mountable() { grep -qw "$1" /proc/filesystems || modprobe -q "$1"; }
mount_image() { mount -t "$1" -o loop "$2" mnt; }
unmount_image() {
    local device
    device=$(findmnt -nvo SOURCE mnt)
    umount mnt
    # It remembers what was mounted, and takes no older image of the same disk after that.
    [[ $1 != btrfs ]] || btrfs device scan --forget "$device"
}
mkdir mnt
on_exit e2e_unmount "$tmp/mnt"

# Each file is fsynced before it gets its name, which is its number and its checksum; then the number is written to
# `last`; and only then the oldest one goes. Beside them directories, links and holes come and go.
kept=20
writer() {
    local dir=mnt/$1 number=0 sum tree
    mkdir -p "$dir/files"
    until [[ -e stop ]]; do
        number=$((number + 1))
        head -c $((RANDOM * 3 + 1)) /dev/urandom >"$dir/new"
        sum=$(sha256sum <"$dir/new")
        sync "$dir/new"
        mv "$dir/new" "$dir/files/$number.${sum%% *}"
        sync "$dir/files"
        echo $number >"$dir/last.new"
        sync "$dir/last.new"
        mv "$dir/last.new" "$dir/last"
        sync "$dir"
        rm -f "$dir/files/$((number - kept))".*
        tree=$dir/tree.$((number % 3))
        rm -rf "$tree"
        mkdir -p "$tree"/{a,b/c}
        ln "$dir/files/$number".* "$tree/a/link"
        cp "$dir/files/$number".* "$tree/b/c/holes"
        fallocate -p -o 8192 -l 16384 "$tree/b/c/holes"
        truncate -s 40K "$tree/b/c/holes"
    done
}
# check_files DIR: those that must be there are, and every one has its content
check_files() {
    local last=0 number file sum
    [[ ! -e $1/last ]] || last=$(cat "$1/last")
    for ((number = last > kept ? last - kept + 1 : 1; number <= last; number++)); do
        compgen -G "$1/files/$number.*" >/dev/null || fail "file $number is missing, and the last one is $last"
    done
    for file in "$1"/files/*; do
        [[ -e $file ]] || continue
        sum=$(sha256sum <"$file")
        [[ ${file##*.} == "${sum%% *}" ]] || fail "$file has another content"
    done
    echo "$last"
}

consistent() { [[ $(tail -n +2 dst.img.drover/record | jq .consistent) == true ]]; }
generation=1
start_stream() {
    local migration
    migration=$(new_id)
    generation=$((generation + 1))
    prepare dst "$migration" $generation
    replicate "$migration" $generation
}
in_sync_or_failed() { phase_is in_sync || phase_is failed; }
# cut_off NAME: the destination's image at some moment at which it was in sync
cut_off() {
    local end=$((SECONDS + 120)) lsn
    while ((SECONDS < end)); do
        wait_for 60 in_sync_or_failed
        if phase_is failed; then # the destination was away for too long
            ctl "$tmp/src.ctl" cancel >/dev/null
            start_stream
            continue
        fi
        sleep $((RANDOM % 2)).$((RANDOM % 1000))
        killed dst
        lsn=$(replication applied)
        # The source waits for 30 s until the destination is there again.
        if consistent && timeout 20 cp --reflink=auto --sparse=always dst.img "$1"; then
            serve dst dst.img role=destination
            echo "cut at LSN $lsn"
            return
        fi
        serve dst dst.img role=destination
    done
    fail "it is hardly ever in sync"
}

# blocks_back TYPE BEFORE IMAGE: of the blocks of IMAGE that differ from those of BEFORE, first 1, then 2, 4... are put
# back, until the checker complains, which it must long before they all are; those of file contents are left out, which
# are as good as random, and no checker's business
blocks_back() {
    local back=0 until=1 block changed
    perl -MList::Util=shuffle -e 'srand shift; open A, "<", shift; open B, "<", shift;
        for ($n = 0; read(A, $a, 4096) && read(B, $b, 4096); $n++) { push @changed, "$n\n" if $a ne $b && $b =~ tr/\0// > 100 }
        print shuffle @changed' "$seed" "$2" "$3" >changed
    changed=$(wc -l <changed)
    while read -r block; do
        dd if="$2" of="$3" bs=4096 skip="$block" seek="$block" count=1 conv=notrunc status=none
        back=$((back + 1))
        ((back == until)) || continue
        if ! check "$1" "$3" >/dev/null 2>&1; then
            echo "blocks of before are noticed: $back of $changed"
            return
        fi
        until=$((until * 2))
    done < <(head -n $((changed / 2)) changed)
    fail "the checker of $1 takes everything"
}

one_type() {
    local type=$1 i writers=()
    echo "# $type"
    make "$type" src.img
    mount_image "$type" src.img || fail "a new $type can't be mounted"
    cp -r "$e2e_top"/{docs,common,migrator} mnt
    unmount_image "$type"
    cp --sparse=always src.img before.img

    serve src src.img
    serve dst dst.img role=destination "size=${size[$type]}"
    fuse_disk disk "nbd+unix:///?socket=$tmp/src.sock" || fail "nbdfuse"
    mount_image "$type" disk
    rm -f stop
    for i in 1 2; do
        background writer "writer$i"
        writers+=("$pid")
    done
    start_stream
    for ((i = 1; i <= cuts; i++)); do
        cut_off "cut$i.img"
    done
    touch stop
    for i in "${writers[@]}"; do
        wait "$i" || fail "a writer has seen an error"
    done
    unmount_image "$type"
    unfuse_disk disk
    ctl "$tmp/src.ctl" cancel >/dev/null
    stop src
    stop dst

    for ((i = 1; i <= cuts; i++)); do
        mount_image "$type" "cut$i.img" || fail "cut $i can't be mounted"
        echo "cut $i: files up to $(check_files mnt/writer1) and $(check_files mnt/writer2)"
        unmount_image "$type"
        check "$type" "cut$i.img" >fsck.log 2>&1 || fail "cut $i: $(cat fsck.log)"
    done
    blocks_back "$type" before.img "cut$cuts.img"
    rm -rf -- *.img *.img.*
}

for type in ext4 xfs btrfs; do
    if mountable $type; then
        one_type $type
        some=yes
    else
        echo "# $type: not in this kernel"
    fi
done
[[ -n ${some-} ]] || skip "this kernel has none of the file systems"
