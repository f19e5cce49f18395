#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# test: full release timeout=2400
# The Dockerfile builds; its image serves a disk to a client outside, tells about it, keeps its
# record over a restart of the container, and moves a disk to another container.
#
# Needs no image registry, no systemd and no Docker: debootstrap makes the base image, buildah
# builds, podman with runc runs. All of it in a folder of its own that is removed at the end.
set -Eeuo pipefail

skip() { echo "skipped: $*"; exit 77; }
[ "$(id -u)" = 0 ] || skip "containers are made as root here"
for tool in buildah podman runc debootstrap nbdinfo nbdcopy; do
  command -v $tool >/dev/null || skip "$tool is not installed (apt-get install buildah podman runc debootstrap libnbd-bin)"
done
[ -n "${DROVER_BUILD:-}" ] || { echo "DROVER_BUILD must name the build folder" >&2; exit 2; }

top=$(readlink -f "$(dirname "$0")/../..")
work=$(mktemp -d /tmp/drover-ct.XXXXXX)
base=docker.io/library/debian:bookworm-slim
image=localhost/drover-test
storage=(--root "$work/storage" --runroot "$work/runroot")
locks=/dev/shm/libpod_lock # podman makes it where it is missing, and leaves it
had_locks=no
[ ! -e $locks ] || had_locks=yes

fail() { echo "container.sh: $*" >&2; exit 1; }
# crun, podman's default, refuses machines whose cgroups are of the hybrid kind, and without systemd
# the cgroup files are all there is.
podman_() { podman "${storage[@]}" --tmpdir "$work/podman" --runtime /usr/sbin/runc --cgroup-manager cgroupfs "$@"; }
buildah_() { buildah "${storage[@]}" "$@"; }

cleanup() {
  local status=$?
  trap - EXIT
  if [ $status != 0 ] && [ $status != 77 ]; then
    for log in "$work"/*/run/*/*.log; do
      if [ -f "$log" ]; then echo "-- $log:"; tail -n 20 "$log"; fi >&2
    done
  fi
  podman_ rm --force --all --time 5 >/dev/null 2>&1 || true
  buildah_ rm --all >/dev/null 2>&1 || true
  podman_ system reset --force >/dev/null 2>&1 || true
  umount --recursive "$work/storage/overlay" 2>/dev/null || true
  rm -rf "$work"
  [ $had_locks = yes ] || rm -f $locks
  exit $status
}
trap cleanup EXIT
trap 'echo "container.sh: line $LINENO failed" >&2' ERR

wait_for() { # SECONDS COMMAND...
  local until=$((SECONDS + $1))
  until "${@:2}" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || return 1
    sleep 0.2
  done
}

# ---- the base image, where it can't be pulled

# shellcheck disable=SC2016 # apt's own variable
mirror_of() { apt-get indextargets --format '$(SITE)' "Codename: $1" 'Created-By: Packages' | head -n 1; }

make_base() {
  local root=$work/base mirror container
  mirror=$(mirror_of bookworm)
  [ -n "$mirror" ] || skip "apt knows no mirror of Debian 12"
  debootstrap --variant=minbase bookworm "$root" "$mirror" >"$work/debootstrap.log" 2>&1 ||
    skip "debootstrap: $(tail -n 1 "$work/debootstrap.log")"
  for suite in bookworm bookworm-updates; do echo "deb $mirror $suite main"; done >"$root/etc/apt/sources.list"
  if [ -n "$(mirror_of bookworm-security)" ]; then
    echo "deb $(mirror_of bookworm-security) bookworm-security main" >>"$root/etc/apt/sources.list"
  fi
  # As the real one: no manuals.
  printf 'path-exclude /usr/share/%s/*\n' doc man locale >"$root/etc/dpkg/dpkg.cfg.d/slim"
  rm -rf "$root"/var/cache/apt/archives/*.deb
  container=$(buildah_ from scratch)
  buildah_ add --quiet "$container" "$root" / >/dev/null
  buildah_ commit --quiet --rm "$container" "$base" >/dev/null
  rm -rf "$root"
}

make_base
# The build's steps use the machine's own network: they reach the mirror as it does, and no
# bridge or firewall rule is made for them.
buildah_ build --runtime /usr/sbin/runc --network host --pull-never --quiet -t $image "$top" >"$work/build.log" 2>&1 ||
  { tail -n 40 "$work/build.log" >&2; fail "the image does not build"; }

# ---- in the image

# podman's own limits are above what a machine without CAP_SYS_RESOURCE may set.
limits=(--ulimit nofile=4096:4096 --ulimit nproc=4096:4096)
run_image() { podman_ run --rm --network none "${limits[@]}" "$@"; }

run_image $image drover --version | grep -q drover || fail "drover does not start in its image"
run_image $image | grep -qi usage || fail "the image without a command does not say how to use it"
run_image $image nbdkit drover --dump-plugin | grep -q '^name=drover$' || fail "nbdkit does not find the plugin in the image"

# A container that stays, and is a site of its own; all of it is in $work/NAME, under the same path
# inside and outside.
start_site() {
  local name=$1 site=$work/$1
  mkdir -p "$site"/{run,state,disk,conf/vm.d}
  echo "images = \"$site/disk\"" >"$site/conf/drover.toml"
  podman_ run -d --name "drover-$name" "${limits[@]}" "${@:2}" -v "$site:$site" \
    -v /etc/machine-id:/etc/machine-id:ro -e "DROVER_RUN=$site/run" -e "DROVER_STATE=$site/state" \
    -e "DROVER_CONF=$site/conf/drover.toml" $image sleep infinity >/dev/null
}
inside() { podman_ exec -i "drover-$1" "${@:2}"; }
status() { inside "$1" drover ctl "$work/$1/run/vm1/root.ctl" status; }
expect_role() {
  local role
  role=$(status "$1" | jq -r .role)
  [ "$role" = "$2" ] || fail "the disk in $1 is '$role', not '$2'"
}
# expect_content NAME: what its clients read is the disk that we began with
expect_content() {
  rm -f "$work/read.img"
  nbdcopy "nbd+unix:///?socket=$work/$1/run/vm1/root.sock" "$work/read.img"
  cmp "$work/read.img" "$work/expected.img" || fail "the disk in $1 has other content"
}

start_site source --network none
disk=$work/source/disk/vm1.img
truncate -s 64M "$disk"
dd if=/dev/urandom of="$disk" bs=1M count=8 seek=3 conv=notrunc status=none
cp --sparse=always "$disk" "$work/expected.img"
cat >"$work/source/conf/vm.d/vm1.toml" <<TOML
name = "vm1"
hypervisor = "none"
[[disk]]
name = "root"
file = "$disk"
TOML
inside source drover serve vm1
expect_content source
expect_role source owner
uuid=$(status source | jq -er .uuid)

# The record lies on a volume, so that the next container goes on with it.
inside source drover serve --stop vm1
podman_ restart --time 10 drover-source >/dev/null
inside source drover serve vm1
[ "$(status source | jq -r .uuid)" = "$uuid" ] || fail "the disk has another identity after a restart"

# ---- from one container to another; the coordinator is outside, and its --rsh is podman's

start_site destination --network container:drover-source
rsh="podman ${storage[*]} --tmpdir $work/podman --runtime /usr/sbin/runc --cgroup-manager cgroupfs exec -i {host}"
DROVER_RUN=$work/source/run DROVER_STATE=$work/source/state DROVER_CONF=$work/source/conf/drover.toml \
  drover migrate vm1 drover-destination --rsh "$rsh" --data-address 127.0.0.1 --disk-only --detach
expect_role source fenced
expect_role destination owner
expect_content destination
[ "$(status destination | jq -r .uuid)" = "$uuid" ] || fail "the disk has another identity after its move"
echo "served, restarted and moved between containers"
