#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Keys and tokens of a migration: in no command line, environment, log, report or core file, in no file that others
# may read. And who may speak to the control sockets.
# test: timeout=120
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit jq setpriv socat perl

site a 'listen = "127.0.0.1"' 'ports = "22340-22359"'
site b 'listen = "127.0.0.1"' 'ports = "22360-22379"'
ways_to_sites "$tmp/at"
umask 022 # nothing may hang on a stricter one

# Command lines and environments of all that this test has started, for as long as it runs.
sample() {
    local pid
    while :; do
        for pid in $(grep -laF "$tmp" /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | grep -o '[0-9]\+' | sort -u || true); do
            [[ $pid == "$BASHPID" ]] || cat "/proc/$pid/cmdline" "/proc/$pid/environ" 2>/dev/null || true
        done | tr '\0' '\n'
        echo ========
    done
}
background sample >samples
sampled() { [[ $(grep -c ======== samples) -ge $1 ]]; }
wait_for_samples() { wait_for 30 sampled $(($(grep -c ======== samples) + 3)); }

site a
truncate -s 32M a/images/vm1.img
printf 'name = "vm1"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/a/images/vm1.img" >a/vm.d/vm1.toml
drover serve vm1

# secrets_of: each one that is in use now, a line each
secrets_of() {
    # One may go meanwhile.
    find a/state a/run b/state b/run -type f -name '*psk*' -exec sed -n 's/^[^:]*:\([0-9a-f]\{64\}\)$/\1/p' {} + 2>/dev/null || true
    find a/state b/state -type f -name record -exec tail -q -n +2 {} + |
        jq -r '.token, .refusal_token, .tombstones[].refusal_token | select(. != "")'
}
mkdir steps
for step in source.fence destination.promote; do
    mkfifo "steps/$step" "steps/$step.go"
done
DROVER_TEST_STEPS=$tmp/steps drover migrate vm1 b --rsh "env DROVER_TEST_STEPS=$tmp/steps $tmp/at" --data-address 127.0.0.1 \
    --disk-only --json >out 2>err &
migrating=$!
echo "# modes, while there are keys and tokens"
modes() {
    local wrong
    # The sockets' folders may be entered: the hypervisor need not be root's. These two have no secret.
    # What is written anew comes by way of a .tmp, which may go away while find looks.
    wrong=$(find a/state b/state \( -type f ! -perm 0600 \) -o \( -type d ! -path '*/state' ! -perm 0700 \) || true)
    [[ -z $wrong ]] || fail "$1: modes of $(stat -c '%a %n' $wrong)"
    wrong=$(find a/run b/run \( -type f -o -type s \) ! -perm 0600 ! -name '*.json' ! -name .gnutls.conf || true)
    [[ -z $wrong ]] || fail "$1: modes of $(stat -c '%a %n' $wrong)"
}
for step in source.fence destination.promote; do
    timeout 60 cat "steps/$step" >/dev/null || fail "it did not come to $step: $(cat out err)"
    secrets_of >>secrets
    modes $step
    wait_for_samples
    if [[ $step == source.fence ]]; then
        # The coordinator's socket, before anybody was let in
        [[ $(stat -c %a a/run/vm1/migrate.sock) == 600 ]] || fail "mode of migrate.sock"
        chmod 0777 a/run/vm1 a/run/vm1/migrate.sock
        chmod 0755 . a a/run
        said=$(setpriv --reuid 65534 --regid 65534 --clear-groups socat -t 5 - "UNIX-CONNECT:$tmp/a/run/vm1/migrate.sock" \
            <<<'{"jsonrpc":"2.0","id":1,"method":"status","params":{}}' 2>/dev/null) || true
        [[ -z $said ]] || fail "the coordinator spoke with another user: $said"
        said=$(socat -t 5 - "UNIX-CONNECT:$tmp/a/run/vm1/migrate.sock" <<<'{"jsonrpc":"2.0","id":1,"method":"status","params":{}}')
        [[ $said == *'"phase"'* ]] || fail "it does not speak with its own user either: $said"
        chmod 0755 a/run/vm1
        chmod 0600 a/run/vm1/migrate.sock
        chmod 0700 .
    fi
    timeout 20 bash -c ": >steps/$step.go"
done
wait $migrating || fail "the migration: $(cat out err)"
secrets_of >>secrets
modes "afterwards"
wait_for_samples
sort -u secrets -o secrets
(($(wc -l <secrets) >= 4)) || fail "the test knows too few secrets: $(wc -l <secrets)"

echo "# where they are"
grep -q 'agent' samples && grep -q 'nbdkit' samples || fail "the samples lack the agent or nbdkit"
if grep -qFf secrets samples; then fail "a command line or an environment has $(grep -oFf secrets samples | sort | uniq -c)"; fi
for file in out err $(grep -rlFf secrets a b); do
    case $file in
        */psk | */*-psk | */record) ;;
        out | err) if grep -qFf secrets $file; then fail "$file has a secret"; fi ;;
        *) fail "$file has a secret" ;;
    esac
done
[[ -s out && -s a/state/vm1/last-migration.json && -s b/state/vm1/journal ]] || fail "there is no report or journal to look at"

echo "# the keys of the migration are gone, but for the one that forwards"
[[ $(secrets_of | sort -u | wc -l) -lt $(wc -l <secrets) ]] || fail "every key is still there"

echo "# another user at a control socket, however it got there"
ctl=$tmp/b/run/vm1/root.ctl
[[ $(stat -c %a "$ctl") == 600 ]] || fail "mode of the control socket"
chmod 0755 . b b/run b/run/vm1
chmod 0666 "$ctl"
request='{"jsonrpc":"2.0","id":1,"method":"status","params":{}}'
said=$(setpriv --reuid 65534 --regid 65534 --clear-groups socat -t 5 - "UNIX-CONNECT:$ctl" <<<"$request" 2>/dev/null) || true
[[ -z $said ]] || fail "the plugin spoke with another user: $said"
[[ $(socat -t 5 - "UNIX-CONNECT:$ctl" <<<"$request") == *'"role"'* ]] || fail "it does not speak with its own user either"
chmod 0600 "$ctl"
chmod 0700 .
drover serve --stop vm1 # it forwards to the other one
./at b drover serve --stop vm1

echo "# no core files"
# dumped COMMAND...: whether its end by SIGABRT, once READY is there, leaves one
cat >dumped.pl <<'PERL'
my ($ready, @command) = @ARGV;
my $pid = fork() // die;
if (!$pid) { exec(@command) or die }
for (1 .. 600) { last if -e $ready; select(undef, undef, undef, 0.05) }
-e $ready or die "not ready";
kill 'ABRT', $pid;
waitpid($pid, 0);
print $? & 128 ? "dumped\n" : "not dumped\n";
PERL
mkdir cores
cd cores
ulimit -c unlimited
if [[ $(perl ../dumped.pl /dev/null sleep 100) == dumped ]]; then
    truncate -s 1M "$tmp/disk.img"
    [[ $(perl ../dumped.pl "$tmp/p.ctl" nbdkit -f -U "$tmp/p.sock" "$DROVER_PLUGIN" "$tmp/disk.img" control="$tmp/p.ctl") == "not dumped" ]] ||
        fail "nbdkit left a core file"
    truncate -s 1M "$tmp/a/images/vm2.img"
    sed 's/vm1/vm2/' "$tmp/a/vm.d/vm1.toml" >"$tmp/a/vm.d/vm2.toml"
    [[ $(perl ../dumped.pl "$tmp/a/run/vm2/root.json" drover serve --foreground vm2 | tail -n 1) == "not dumped" ]] ||
        fail "drover left a core file"
    wait_for 20 drover serve --stop vm2
else
    echo "(this machine makes no core files: not tried)"
fi
