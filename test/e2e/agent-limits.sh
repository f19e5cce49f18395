#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# What a peer can't do who may run `drover agent --stdio` and nothing else (an ssh key that is bound to
# it), whatever it says: leave the folder of images, go beyond the limits, choose a command or slip words
# into it, take or touch what is another VM's. Nor do it and what it starts write where they have no business.
# test: timeout=180 asan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit jq nbdinfo qemu-img qemu-system-x86_64

site a 'listen = "127.0.0.1"' 'ports = "22300-22319"'
site b 'listen = "127.0.0.1"' 'ports = "22320-22339"' 'bridges = ["br0"]'
cat >>b/drover.toml <<TOML
[limits]
disks = 2
disk-size = "64M"
nics = 1
memory = "1G"
[hypervisor.qemu]
command = ["$tmp/started", "{vm}", "{memory}", "{cpus}", "{qmp}", "{profile}"]
[hypervisor.qemu.values]
profile = "small|large"
TOML
printf '#!/bin/sh\ntouch "%s/was-started"\n' "$tmp" >started
chmod +x started
ways_to_sites "$tmp/at"

# ---- the peer: an agent at b, and what it is asked

agent_pid=
# start_agent [SITE]
start_agent() {
    coproc AGENT { exec "$tmp/at" "${1:-b}" drover agent --stdio 2>>"$tmp/agent.err"; }
    agent_pid=$AGENT_PID
    # Its own two are closed when it ends, with an answer in them.
    exec {to}>&"${AGENT[1]}" {from}<&"${AGENT[0]}"
    eval "exec ${AGENT[1]}>&-"
}
end_agent() {
    [[ -n $agent_pid ]] || return 0
    exec {to}>&- {from}<&-
    wait_for 20 eventually_gone "$agent_pid"
    wait "$agent_pid" 2>/dev/null || true
    agent_pid=
}
on_exit end_agent

# ask METHOD PARAMS: the answer in $answer
ask() {
    jq -nc --arg method "$1" --argjson params "$2" \
        '{jsonrpc: "2.0", id: 7, method: $method, params: $params}' >&"$to"
    answer=
    # It also tells of events.
    until [[ $(jq -r .id <<<"$answer") == 7 ]]; do
        IFS= read -r -t 60 answer <&"$from" || fail "the agent did not answer $1 $2: $(cat agent.err)"
    done
}
# refused CODE WHAT METHOD PARAMS
refused() {
    ask "$3" "$4"
    [[ $(jq -r .error.code <<<"$answer") == "$1" ]] || fail "$2: $answer"
}
granted() {
    ask "$1" "$2"
    [[ $(jq 'has("result")' <<<"$answer") == true ]] || fail "$1 $2: $answer"
}

uuid=00000000-0000-4000-8000-000000000001
# vm FILTER: a VM that could come, changed by a filter of jq's, in which $text is the variable of that name
vm() {
    jq -nc --arg uuid $uuid --arg text "${text:-}" '{name: "guest", hypervisor: "qemu",
        disks: [{name: "root", uuid: $uuid, size: 33554432, block_size: 65536}],
        nics: [{mac: "02:00:00:00:00:01", bridge: "br0", addresses: []}],
        values: {memory: "256M", cpus: "1", profile: "small"}} | '"$1"
}
check() { jq -nc --argjson vm "$(vm "$1")" '{vm: $vm}'; }

start_agent
granted check "$(check .)"

echo "# system calls"
[[ $(id -u) != 0 || $(sed -n 's/^Seccomp:\s*//p' "/proc/$agent_pid/status") == 2 ]] || fail "the agent has no filter: $(cat agent.err)"
[[ $(sed -n 's/^NoNewPrivs:\s*//p' "/proc/$agent_pid/status") == 0 ]] || fail "commands could not use sudo"

echo "# names"
for text in ../guest ../../etc/passwd /etc/passwd a/b . .. .hidden '' -rf -incoming '"' "'" 'a b' 'a,b' '{vm}' '$(id)' 'a:b' \
    $'a\nb' $'a\tb' "$(printf 'x%.0s' {1..65})"; do
    refused 6 "a VM called '$text'" check "$(check '.name = $text')"
    refused 6 "a disk called '$text'" check "$(check '.disks[0].name = $text')"
done
for text in journal journal.tmp agent.lock migrate.lock vm.toml qmp migrate; do
    refused 6 "a disk with the name of a file of drover's" check "$(check '.disks[0].name = $text')"
done
granted check "$(check '.disks[0].name = "keys"')" # which is none of them
refused 6 "a UUID that is a path" check "$(check '.disks[0].uuid = "../../../../etc/passwd-000000000000"')"

echo "# numbers and sizes"
refused 6 "a disk too large" check "$(check '.disks[0].size = 67108865')"
refused 6 "a disk of nothing" check "$(check '.disks[0].size = 0')"
refused -32602 "a negative size" check "$(check '.disks[0].size = -1')"
refused -32602 "a size that is a text" check "$(check '.disks[0].size = "1"')"
refused 6 "a block size that is no power of two" check "$(check '.disks[0].block_size = 65537')"
refused 6 "three disks" check "$(check '.disks += [(.disks[0] | .name = "b"), (.disks[0] | .name = "c")]')"
refused 6 "a disk twice" check "$(check '.disks += [.disks[0]]')"
refused 6 "no disk" check "$(check '.disks = []')"
refused 6 "two NICs" check "$(check '.nics += [.nics[0]]')"
refused 6 "too much memory" check "$(check '.values.memory = "2G"')"

echo "# nothing that is a command, a path or an option"
refused -32602 "a file" check "$(check '.disks[0].file = "/etc/shadow"')"
refused -32602 "a URI" check "$(check '.disks[0].uri = "nbd://127.0.0.1"')"
refused -32602 "a command" check "$(check '.command = ["/bin/sh"]')"
refused 6 "another hypervisor" check "$(check '.hypervisor = "exec"')"
refused 6 "a path as the hypervisor" check "$(check '.hypervisor = "../../bin/sh"')"
refused 6 "a value that was not declared" check "$(check '.values.disk = "x"')"
refused 6 "a value that gives the template's words" check "$(check '.values.qmp = "x"')"
for text in '256M,maxmem=4T' '256M -monitor stdio' $'256M\n-monitor' '-m' '{vm}' '' 0M 256m; do
    refused 6 "memory of '$text'" check "$(check '.values.memory = $text')"
    refused 6 "cpus of '$text'" check "$(check '.values.cpus = $text')"
done
refused 6 "a value beyond its pattern" check "$(check '.values.profile = "smaller"')"
refused 6 "another bridge" check "$(check '.nics[0].bridge = "br1"')"
refused 6 "words in a bridge" check "$(check '.nics[0].bridge = "br0,script=/tmp/x"')"
refused 6 "words in a MAC" check "$(check '.nics[0].mac = "02:00:00:00:00:01,x=y"')"
refused 6 "words in an address" check "$(check '.nics[0].addresses = ["10.0.0.1/24 -x"]')"
refused -32602 "no such method" exec '{"command": ["id"]}'

echo "# a survey tells what a check refuses, takes nothing else in, and touches nothing"
# surveyed FILTER TEXT: what is found to be a problem
surveyed() {
    granted survey "$(check "$1")"
    jq -e --arg text "$2" '.result.findings | any(.level == "problem" and (.text | contains($text)))' <<<"$answer" >/dev/null ||
        fail "a survey does not find $2: $answer"
}
for text in ../guest /etc/passwd '{vm}' $'a\nb'; do surveyed '.name = $text' "is no name of a VM"; done
surveyed '.disks[0].name = "journal"' "is no name of a disk"
surveyed '.disks[0].size = 67108865' "limits.disk-size"
surveyed '.nics[0].bridge = "br0,script=/tmp/x"' "does not allow it"
surveyed '.values.memory = "2G"' "limits.memory"
surveyed . "has no bridge br0"
refused -32602 "a file" survey "$(check '.disks[0].file = "/etc/shadow"')"
refused -32602 "a command" survey "$(check '.command = ["/bin/sh"]')"
refused -32602 "a folder" survey "$(jq -c '.images = "/etc"' <<<"$(check .)")"
refused -32602 "used bytes that are a path" survey "$(jq -c '.used = {root: "/etc"}' <<<"$(check .)")"
refused -32602 "a base that is no disk's" survey "$(jq -c '.bases = {other: "x.img"}' <<<"$(check .)")"
word=$(printf 'ef%.0s' {1..16})
refused -32602 "more ports than a VM has" probe '{"word": "'"$word"'", "tcp": 4, "udp": 0}'
refused -32602 "more UDP ports than NICs" probe '{"word": "'"$word"'", "tcp": 0, "udp": 2}'
refused -32602 "an address" probe '{"word": "'"$word"'", "tcp": 1, "udp": 0, "listen": "*"}'
refused -32602 "a word that is none" probe '{"word": "GET / HTTP/1.0", "tcp": 1, "udp": 0}'
granted probe '{"word": "'"$word"'", "tcp": 3, "udp": 1}'
jq -e '.result.tcp + .result.udp | all(. >= 22320 and . <= 22339)' <<<"$answer" >/dev/null || fail "$answer"
end_agent
[[ -z $(find b/state b/run b/images -mindepth 1) ]] || fail "left behind: $(find b/state b/run b/images)"

echo "# what is no protocol ends or is refused, and changes nothing"
head -c 3000000 /dev/zero | tr '\0' '[' | timeout 60 ./at b drover agent --stdio >out 2>err || true
head -c 300000 /dev/urandom | timeout 60 ./at b drover agent --stdio >out 2>err || true
[[ -z $(find b/state b/run b/images -mindepth 1) ]] || fail "left behind after rubbish"

echo "# images: what is there stays, and no link leads elsewhere"
migration=$(printf 'ab%.0s' {1..16})
key=$(printf 'cd%.0s' {1..32})
# prepare FILTER: of a disk alone
prepare() {
    jq -nc --argjson vm "$(vm "$1")" --arg migration "$migration" --arg key "$key" --argjson generation "${2:-50}" \
        '{migration: $migration, generation: $generation, psk_key: $key, vm: $vm, disk_only: true}'
}
mkdir b/images/there elsewhere
echo precious >b/images/there/root.img
ln -s "$tmp/elsewhere" b/images/linked
mkdir b/images/dangling
ln -s "$tmp/elsewhere/new.img" b/images/dangling/root.img
start_agent
refused 6 "an image that is there" prepare "$(prepare '.name = "there"')"
refused 6 "a folder that is a link" prepare "$(prepare '.name = "linked"')"
refused 6 "an image that is a link" prepare "$(prepare '.name = "dangling"')"
granted prepare "$(prepare '.name = "mine"')"
[[ -f b/images/mine/root.img ]] || fail "its own image is not there"
pid=$(jq .pid b/run/mine/root.json)
echo "not a key" >>b/state/mine/root/psk
end_agent # cleans up, whatever has become of the keys
expect_text agent.err "b/state/mine/root/psk: damaged"
wait_for 20 eventually_gone "$pid"
[[ $(cat b/images/there/root.img) == precious ]] || fail "an image was overwritten"
[[ -z $(ls elsewhere) ]] || fail "a link was followed: $(ls elsewhere)"
[[ ! -e b/images/mine ]] || fail "what it had begun is still there"

echo "# an agent that nobody has spoken to for a minute is in nobody's way"
start_agent
granted prepare "$(prepare '.name = "quiet"')"
quiet=$agent_pid quiet_to=$to quiet_from=$from
start_agent 2>/dev/null # bash says that the other one is there still
migration=$(printf 'ba%.0s' {1..16})
ask prepare "$(prepare '.name = "quiet"' 60)"
[[ $(jq -r .error.message <<<"$answer") == *"another migration of quiet to this host is under way"* ]] || fail "two at once: $answer"
touch -d '2 minutes ago' b/state/quiet/agent.lock
granted prepare "$(prepare '.name = "quiet"' 60)"
wait_for 20 eventually_gone "$quiet"
end_agent
exec {quiet_to}>&- {quiet_from}<&-
[[ ! -e b/images/quiet ]] || fail "what they had begun is still there"
migration=$(printf 'ab%.0s' {1..16})

echo "# a VM that another peer has brought here"
truncate -s 32M a/images/own.img
printf 'name = "own"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/a/images/own.img" >a/vm.d/own.toml
site a
drover serve own
expect 0 drover migrate own b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach
drover serve --stop own
own() { ./at b drover ctl own/root "$@"; }
theirs=$(own status | jq -r .migration)
own_uuid=$(own status | jq -r .uuid)
[[ $(own status | jq -r .role) == owner && $theirs != null ]] || fail "it did not come"
pid=$(jq .pid b/run/own/root.json)
# Its hypervisor: what counts is that it is not ended.
background qemu-system-x86_64 -M none -nodefaults -display none -S -qmp "unix:$tmp/b/run/own/qmp.sock,server=on,wait=off"
hypervisor=$pid
pid=$(jq .pid b/run/own/root.json)
wait_for 20 test -S b/run/own/qmp.sock
cp b/state/own/vm.toml vm.toml
cp b/state/own/root/psk psk

start_agent
refused 6 "its disk" prepare "$(prepare '.name = "own"')"
refused 6 "another disk of it" prepare "$(prepare '.name = "own" | .disks[0].name = "other"')"
end_agent

start_agent
granted records '{"vm": "own", "disks": ["root"], "migration": "'"$migration"'"}'
[[ $answer != *"$theirs"* && $(jq -r '.result.disks[0].role' <<<"$answer") == owner ]] || fail "records: $answer"
granted take_over "$(prepare '.name = "own"' | jq -c 'del(.generation, .psk_key) | .disk_only = false')"
[[ $answer != *"$theirs"* && $(jq -r .result.hypervisor <<<"$answer") == none ]] || fail "take_over: $answer"
refused 1 "its status" status '{}'
refused 1 "a key for it" forward_key '{}'
refused 1 "to fence it" supersede '{"generation": 99}'
ask promote '{"token": "00"}'
[[ $(jq -r .error.code <<<"$answer") != null ]] || fail "promote: $answer"
ask refuse '{}'
refused 6 "hashes of a disk whose UUID it does not know" hashes \
    '{"vm": "own", "disks": [{"name": "root", "uuid": "'$uuid'"}], "psk_key": "'"$key"'"}'
refused -32602 "hashes without a UUID" hashes '{"vm": "own", "disks": [{"name": "root"}], "psk_key": "'"$key"'"}'
end_agent
start_agent
granted take_over "$(prepare '.name = "own" | .disks += [.disks[0] | .name = "other"]' | jq -c 'del(.generation, .psk_key)')"
ask finish '{}'
end_agent
[[ $(own status | jq -r '.role, .pid') == "owner"$'\n'"$pid" ]] || fail "its disk was touched: $(own status)"
kill -0 $hypervisor || fail "its hypervisor was ended"
cmp vm.toml b/state/own/vm.toml
cmp psk b/state/own/root/psk

echo "# the VM file that it has left is not edited, and one that was is never replaced"
jq -nc --argjson vm "$(vm '.name = "edited"')" '{vm: $vm, disk_only: true}' >check.json
mkdir b/state/edited
sed 's/name = "own"/name = "edited"/' vm.toml >b/state/edited/vm.toml
cp b/state/edited/vm.toml edited.toml
start_agent
for method in check prepare; do
    params=$(<check.json)
    [[ $method == check ]] || params=$(prepare '.name = "edited"')
    refused 6 "a VM whose file was edited" $method "$params"
    [[ $answer == *"$tmp/b/state/edited/vm.toml: damaged, or edited"*"move it to $tmp/b/vm.d/edited.toml"* ]] || fail "$answer"
done
end_agent
cmp edited.toml b/state/edited/vm.toml
for command in check serve; do
    ./at b drover $command edited >out 2>err && fail "drover $command took a VM file that was edited"
    expect_text err "b/state/edited/vm.toml: damaged, or edited"
done
expect 1 ./at b drover check "$tmp/b/state/edited/vm.toml"
mv b/state/edited/vm.toml b/vm.d/edited.toml
expect 0 ./at b drover check edited
rm b/vm.d/edited.toml
rmdir b/state/edited

echo "# a key for hashes opens nothing else"
start_agent
granted hashes '{"vm": "own", "disks": [{"name": "root", "uuid": "'"$own_uuid"'"}], "psk_key": "'"$key"'"}'
user=$(jq -r '.result.disks[0].psk_user' <<<"$answer")
port=$(jq -r '.result.disks[0].port' <<<"$answer")
echo "$user:$key" >key
export_size() { nbdinfo --size "nbds://$user@127.0.0.1:$port/$1?tls-psk-file=$tmp/key"; }
expect 0 export_size hashes
generation=$(own status | jq -r .generation)
for other in '' replica state "forward/$generation/1" "forward//$generation/1" "forward/$migration/$generation/1"; do
    expect 1 export_size "$other"
done
expect 0 export_size "forward/$theirs/$generation/1" # so the ones above were not refused for another reason
end_agent
cmp psk b/state/own/root/psk

echo "# none while a migration comes in: the disk's \`state\` has the migration's id"
# hashes VM UUID: asks for those of its disk
hashes() { echo '{"vm": "'"$1"'", "disks": [{"name": "root", "uuid": "'"$2"'"}], "psk_key": "'"$key"'"}'; }
mkdir -p b/state/coming/root
echo "verify-00:$key" >b/state/coming/root/psk
start_agent
granted prepare "$(prepare '.name = "coming"')"
port=$(jq -r '.result.disks[0].port' <<<"$answer")
user=$(jq -r '.result.disks[0].psk_user' <<<"$answer")
refused 1 "hashes of a disk that comes in" hashes "$(hashes coming $uuid)"
[[ $(cut -d: -f1 b/state/coming/root/psk) == "$user" ]] || fail "keys: $(cat b/state/coming/root/psk)"
echo "$user:$key" >key
expect 0 export_size state
end_agent

echo "# a VM whose disk stays, and forwards"
truncate -s 32M b/images/stays.img
printf 'name = "stays"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/b/images/stays.img" >b/vm.d/stays.toml
site b
drover serve stays
expect 0 drover migrate stays a --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only
[[ $(drover ctl stays/root status | jq -r .role) == forwarding ]] || fail "it does not forward"
pid=$(jq .pid b/run/stays/root.json)
stays_uuid=$(drover ctl stays/root status | jq -r .uuid)
start_agent
granted take_over "$(prepare ".name = \"stays\" | .disks[0].uuid = \"$stays_uuid\"" | jq -c 'del(.generation, .psk_key)')"
granted refuse '{}'
end_agent
[[ $(drover ctl stays/root status | jq -r '.role, .pid') == "forwarding"$'\n'"$pid" ]] || fail "the disk that forwards was touched"
drover serve --stop stays
./at a drover serve --stop stays

echo "# a migration from here that has not come to its end is not ended by one that comes"
mkdir steps
mkfifo steps/destination.promote steps/destination.promote.go
truncate -s 32M b/images/out.img
printf 'name = "out"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/b/images/out.img" >b/vm.d/out.toml
site b
drover serve out
drover migrate out a --rsh "env DROVER_TEST_STEPS=$tmp/steps $tmp/at" --data-address 127.0.0.1 --disk-only --detach >out 2>err &
migrating=$!
timeout 60 cat steps/destination.promote >/dev/null || fail "it did not come to its promotion: $(cat out err)"
[[ $(drover ctl out/root status | jq -r .role) == fenced ]] || fail "it is not fenced"
cp b/state/out/journal journal
start_agent
ask prepare "$(prepare ".name = \"out\" | .disks[0].uuid = \"$(drover ctl out/root status | jq -r .uuid)\"")"
[[ $answer == *"has not come to its end"* ]] || fail "prepare of a VM that is leaving: $answer"
end_agent
cmp journal b/state/out/journal
timeout 20 bash -c ": >steps/destination.promote.go"
wait $migrating || fail "the migration: $(cat out err)"
./at a drover serve --stop out
drover serve --stop out
[[ ! -e was-started ]] || fail "a hypervisor was started"

echo "# files: the agent and what it starts write below its own folders and those that the site names"
if [[ $(id -u) != 0 ]] || grep -q "not confined: Landlock" agent.err; then
    echo "not tested: no root, or no Landlock"
    exit 0
fi
outside=$(mktemp -d /root/drover-test.XXXXXX)
named=$(mktemp -d /root/drover-test.XXXXXX)
volumes=$(mktemp -d /root/drover-test.XXXXXX)
on_exit rm -rf "$outside" "$named" "$volumes"
echo theirs >"$outside/there"
site c 'listen = "127.0.0.1"' 'ports = "22340-22359"' 'bridges = ["br0"]' "agent-writes = [\"$named\"]"
printf '[hypervisor.qemu]\ncommand = ["%s", "{qmp}"]\n' "$tmp/writes" >>c/drover.toml
printf 'name = "volume"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$volumes/root.img" >c/vm.d/volume.toml
cat >writes <<SH
#!/bin/bash
exec >$tmp/written 2>&1
try() { if "\$@"; then echo "did \$*"; else echo "did not \$*"; fi; }
try cat $outside/there
try touch $outside/new
try cp /dev/null $outside/there
try truncate -s 0 $outside/there
try rm -f $outside/there
try mkdir $outside/folder
try mv $outside/there $outside/moved
try ln $outside/there $tmp/c/state/linked
try ln -s /root $outside/link
try touch $named/new
try touch $tmp/c/state/new
try touch /var/tmp/${outside##*/}
try rm /var/tmp/${outside##*/}
SH
chmod +x writes
start_agent c
granted prepare "$(prepare .| jq -c '.disk_only = false | del(.vm.values.profile)')"
refused 1 "a hypervisor that ends at once" incoming '{}'
end_agent
cat >expected <<TEXT
did cat $outside/there
did not touch $outside/new
did not cp /dev/null $outside/there
did not truncate -s 0 $outside/there
did not rm -f $outside/there
did not mkdir $outside/folder
did not mv $outside/there $outside/moved
did not ln $outside/there $tmp/c/state/linked
did not ln -s /root $outside/link
did touch $named/new
did touch $tmp/c/state/new
did touch /var/tmp/${outside##*/}
did rm /var/tmp/${outside##*/}
TEXT
diff expected <(grep ^did written) || fail "what the hypervisor wrote: $(cat written)"
[[ $(ls "$outside") == there && $(cat "$outside/there") == theirs ]] || fail "written outside: $(ls -l "$outside")"
# A volume that a file in vm.d names is the agent's to write.
start_agent c
granted prepare "$(prepare '.name = "volume"')"
[[ -f $volumes/root.img ]] || fail "there is no image on the volume"
end_agent
