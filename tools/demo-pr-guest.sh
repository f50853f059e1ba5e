#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# `make demo-pr`, the side in the guest: demo-pr-guest.sh TERMINAL once|interactive ROWS COLUMNS
# Shows reservations step by step; every step must end as expected. SDX and SDY are the two paths to the disk.
set -u
terminal=$1 mode=$2 rows=$3 columns=$4
exec <> "$terminal" >&0 2>&1
stty sane rows "$rows" cols "$columns"

echo 'alice:x:1000:1000::/home/alice:/bin/sh' >> /etc/passwd
echo 'alice:x:1000:' >> /etc/group
mkdir -p /home/alice
ln -s "$SDX" /dev/host-a
ln -s "$SDY" /dev/host-b
chown 1000:1000 "$SDX" "$SDY" /home/alice
sg_turs "$SDX"; sg_turs "$SDY" # what the disk has to say to new hosts is not of interest here

alice() { /usr/bin/setpriv --reuid=1000 --regid=1000 --clear-groups env HOME=/home/alice "$@"; }

text() { printf '\n%s\n' "$*"; }

# Shows and runs a command of alice's: step EXPECTED-STATUS COMMAND...
step() {
    expected=$1
    shift
    printf '\n  alice$ %s\n' "$*"
    alice "$@" > /tmp/said 2>&1
    status=$?
    sed 's/^/  /' /tmp/said
    [ "$status" = 0 ] || printf '  (exit status %s)\n' "$status"
    if [ "$status" != "$expected" ] && { [ "$expected" != fails ] || [ "$status" = 0 ]; }; then
        printf '\nThat should not have happened (expected: %s). The helper has said:\n' "$expected"
        cat /run/helper.log
        exit 1
    fi
}

text "This guest has one SCSI disk that two hosts can reach: /dev/host-a is the way of host A, /dev/host-b
that of host B. The user alice may open both, and nothing else."

text "1. The kernel does not let her reserve the disk: that takes privileges."
step fails sg_persist --out --register --param-sark=0xa /dev/host-a

text "2. So root starts a helper, which does this and nothing else for those who may open the disk."
printf '\n  root# granary-pr-helper --socket-mode=0666 --allow-uid=alice &\n'
granary-pr-helper --socket-mode=0666 --allow-uid=alice 2> /run/helper.log &
tries=0
until [ -S /run/granary-pr-helper.sock ] || [ $tries = 100 ]; do usleep 100000; tries=$((tries + 1)); done

text "3. Through the helper alice registers a key for host A and reserves the disk: only host A may write."
step 0 granary-pr register --new-key 0xa /dev/host-a
step 0 granary-pr reserve --key 0xa --type write-exclusive /dev/host-a
step 0 granary-pr status /dev/host-a

text "4. Host A writes. Host B is refused by the disk itself: it can neither write (\"Invalid exchange\" is
how Linux says reservation conflict) nor reserve."
step 0 dd if=/dev/zero of=/dev/host-a bs=4k count=1 oflag=direct
step fails dd if=/dev/zero of=/dev/host-b bs=4k count=1 oflag=direct
step 0 granary-pr register --new-key 0xb /dev/host-b
step 3 granary-pr reserve --key 0xb --type write-exclusive /dev/host-b

text "5. Host A seems to be dead: host B removes its key, which fences host A off, and takes the disk over."
step 0 granary-pr preempt --key 0xb --victim 0xa /dev/host-b
step 0 granary-pr status /dev/host-b
step fails dd if=/dev/zero of=/dev/host-a bs=4k count=1 oflag=direct
step 0 dd if=/dev/zero of=/dev/host-b bs=4k count=1 oflag=direct

text "6. Host B lets the disk go, and everybody may write again."
step 0 granary-pr release --key 0xb /dev/host-b
step 0 granary-pr register --key 0xb --new-key 0 /dev/host-b
step 0 granary-pr reservation /dev/host-a
step 0 dd if=/dev/zero of=/dev/host-a bs=4k count=1 oflag=direct

text "The helper has written down who changed what:"
echo
sed 's/^/  /' /run/helper.log

[ "$mode" = interactive ] || exit 0

cat > /home/alice/.motd <<END

You are alice now, in the guest. The helper runs. Try:

  granary-pr register --new-key 0xa /dev/host-a
  granary-pr reserve --key 0xa --type exclusive-access /dev/host-a
  granary-pr --json status /dev/host-b
  granary-pr capabilities /dev/host-a
  granary-pr --help

\`exit\` or Ctrl-D ends the guest, Ctrl-] ends it at once.

END
cat /home/alice/.motd
export PS1='alice$ ' TERM=vt100
cd /home/alice || exit 1
alice /usr/bin/busybox setsid -c sh -i
exit 0
