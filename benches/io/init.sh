#!/bin/busybox sh
# PID 1 of the benchmark's guest. It reads jobs from the console, a line each: a word that names the job, then its arguments. It answers
# each with one line, `RESULT` and numbers.
export PATH=/bin:/usr/bin:/usr/sbin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
stty -echo -icanon -opost </dev/console
for word in $(cat /proc/cmdline); do
    case $word in
        io.ip=*) ip link set lo up; ip link set eth0 up; ip addr add "${word#*=}" dev eth0 ;;
        io.host=*) host=${word#*=} ;;
    esac
done

# disk DEVICE SECONDS fio's own words: IOPS of both directions together
disk() {
    device=$1 seconds=$2
    shift 2
    fio --minimal --name=job --filename="/dev/$device" --direct=1 --ioengine=libaio --time_based --runtime="$seconds" \
        --norandommap --randrepeat=0 "$@" >/tmp/out 2>/tmp/errors || { cat /tmp/errors; return; }
    # Fields of fio's terse output, version 3: IOPS of reads, of writes.
    awk -F';' '{ print "RESULT", $8 + $49 }' /tmp/out
}

# verify DEVICE fio's own words: writes, reads back and compares
verify() {
    device=$1
    shift
    fio --minimal --name=job --filename="/dev/$device" --direct=1 --ioengine=libaio --rw=randwrite --verify=crc32c \
        --verify_fatal=1 --verify_backlog=256 "$@" >/tmp/out 2>/tmp/errors || { cat /tmp/errors; echo "RESULT 1"; return; }
    echo "RESULT 0"
}

# offload on|off: of the guest's network
offload() { ethtool -K eth0 rx "$1" tx "$1" gso "$1" tso "$1" gro "$1" >/tmp/out 2>&1; echo "RESULT 0"; }

# pings HOW-MANY BYTES: those that are lost
pings() { ping -c "$1" -s "$2" -i 0.1 -W 20 "$host" >/tmp/out; awk -F'[ %]' '/packet loss/ { print "RESULT", $7 }' /tmp/out; }

# stream SECONDS iperf3's own words: bits in a second, as received. On a slow machine iperf3 may know what came and not how long it took: it says null then.
stream() {
    seconds=$1
    shift
    iperf3 --client "$host" --time "$seconds" --json "$@" >/tmp/out 2>&1 || { cat /tmp/out; return; }
    awk -v seconds="$seconds" '/"sum_received"/ { sum = 1 } sum { gsub(/[^0-9.e+]/, "", $2) }
        sum && /"bytes"/ { bytes = $2 } sum && /bits_per_second/ { print "RESULT", $2 == "" ? bytes * 8 / seconds : $2; exit }' /tmp/out
}

# turns SECONDS PORT: a byte there and a byte back, times in a second
turns() { echo "RESULT $(/bin/turns "$host" "$2" "$1")"; }

echo READY
while read -r line; do
    # shellcheck disable=SC2086 # words of a job
    case $line in
        'disk '* | 'stream '* | 'turns '* | 'verify '* | 'offload '* | 'pings '*) $line ;;
        end) reboot -f ;;
    esac
done
