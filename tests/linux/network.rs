//! Network devices on taps, and the addresses that the guest's init gives them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::guest::{Guest, long, needs_linux, needs_root, noise};
use crate::support::{self, could_not_run};
use crate::tap::{Tap, answers_ping};

/// How long the host waits for a connection or for data.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes taps, or says loudly why it can't.
fn taps<const N: usize>(test: &str, wanted: [(&str, Ipv4Addr); N]) -> Option<Vec<Tap>> {
    if !support::is_root() {
        could_not_run(test, "only root can make a tap");
        return None;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        could_not_run(test, "there is no /dev/net/tun: modprobe tun");
        return None;
    }
    Some(wanted.iter().map(|(name, address)| Tap::new(name, *address).expect("root makes a tap")).collect())
}

/// Accepts one connection, serves it in a thread, and gives what the service gives.
fn serve<T: Send + 'static>(
    address: Ipv4Addr,
    service: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, thread::JoinHandle<Option<T>>) {
    let listener = TcpListener::bind((address, 0)).expect("the tap has its address");
    listener.set_nonblocking(true).expect("sockets can");
    let port = listener.local_addr().expect("it is bound").port();
    let thread = thread::spawn(move || {
        let mut stream = None;
        support::eventually(PATIENCE, || {
            stream = listener.accept().ok();
            stream.is_some()
        });
        let (stream, _) = stream?;
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(service(stream))
    });
    (port, thread)
}

fn receive(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What is missing shows when it is compared.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn a_guest_has_its_address_and_exchanges_data_with_the_host_both_ways() {
    needs_linux!();
    let (host, guest) = (Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 1, 2));
    let name = "a_guest_has_its_address_and_exchanges_data_with_the_host_both_ways";
    let Some(taps) = taps(name, [("bothylinux1", host)]) else { return };
    let content = noise(if long() { 64 << 20 } else { 4 << 20 }, 3);

    let sent = content.clone();
    let (down, sender) = serve(host, move |mut stream| {
        stream.write_all(&sent).is_ok() && stream.shutdown(Shutdown::Write).is_ok()
    });
    let (up, receiver) = serve(host, receive);
    let script = format!(
        "
        echo interfaces=$(ls /sys/class/net | tr '\\n' ' ')
        echo mac=$(cat /sys/class/net/eth0/address)
        echo address=$(ip -4 -o addr show dev eth0 | sed 's/.*inet \\([^ ]*\\).*/\\1/')
        echo route=$(ip route | grep ^default)
        echo dns=$(cat /etc/resolv.conf)
        ping -c 3 -W 20 {host} >/dev/null && echo ping=yes
        nc {host} {down} </dev/null >/tmp/file
        echo size=$(wc -c </tmp/file)
        nc {host} {up} </tmp/file >/dev/null
        echo listening=yes
        nc -l -p 5000 </tmp/file >/tmp/back
        cmp /tmp/file /tmp/back && echo back=same
        echo errors=$(cat /sys/class/net/eth0/statistics/[rt]x_errors)
        echo counted=$(cat /sys/class/net/eth0/statistics/rx_bytes)"
    );
    let net = format!("tap={},mac=02:00:00:00:77:02,ip={guest}/24,gw={host},dns=10.77.1.53", taps[0].name());
    let mut vm = Guest::new().args(["--net", &net]).script(script).start();
    vm.wait_for("listening=yes");
    let pinged = answers_ping(guest, Duration::from_secs(20));
    // The host calls the guest: full duplex, the same bytes both ways.
    let called = call(guest, &content);
    let console = vm.ends_with(0);
    console.insist(matches!(pinged, Ok(true)), &format!("the guest does not answer a ping: {pinged:?}"));
    console.insist(called.as_ref() == Some(&content), "the guest that was called sent something else");
    console.insist(matches!(sender.join(), Ok(Some(true))), "the host could not send");
    console.insist(
        matches!(receiver.join(), Ok(Some(bytes)) if bytes == content),
        "the host received something else",
    );
    console.says("interfaces", "eth0 lo");
    console.says("mac", "02:00:00:00:77:02");
    console.says("address", "10.77.1.2/24");
    console.says("route", "default via 10.77.1.1 dev eth0");
    console.says("dns", "nameserver 10.77.1.53");
    console.says("ping", "yes");
    console.says("size", &content.len().to_string());
    console.says("back", "same");
    console.says("errors", "0 0");
    console.insist(console.text.contains("bothy: exit status 0"), "the script failed");
}

#[test]
fn a_tap_of_its_own_reaches_the_host_at_the_gateway_and_is_gone_with_the_machine() {
    needs_linux!();
    needs_root!("make a tap");
    let (host, guest) = (Ipv4Addr::new(10, 77, 4, 1), Ipv4Addr::new(10, 77, 4, 2));
    let script = format!(
        "echo ping=$(ping -c 3 -W 20 {host} >/dev/null && echo yes)\necho ready=yes\nnc -l -p 5000 </dev/null"
    );
    let net = format!("tap=auto,ip={guest}/24,gw={host}");
    let mut vm = Guest::new().args(["--net", &net]).script(&script).start();
    vm.wait_for("ready=yes");
    let ours = || {
        fs::read_dir("/sys/class/net").unwrap().flatten().any(|entry| {
            // Another test's taps have names of their own.
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix("bothy")?.parse::<u32>().ok())
                .is_some()
        })
    };
    assert!(ours(), "no tap of its own");
    let pinged = answers_ping(guest, Duration::from_secs(20));
    assert_eq!(call(guest, &[]).as_deref(), Some(&[][..]), "the guest is not reached");
    let console = vm.ends_with(0);
    console.insist(matches!(pinged, Ok(true)), &format!("the guest does not answer a ping: {pinged:?}"));
    console.says("ping", "yes");
    support::eventually(Duration::from_secs(10), || !ours());
    assert!(!ours(), "the tap is still there");
}

/// Connects to the guest's port 5000, sends `content` and gives what comes back meanwhile.
fn call(guest: Ipv4Addr, content: &[u8]) -> Option<Vec<u8>> {
    let mut stream = None;
    support::eventually(PATIENCE, || {
        stream = TcpStream::connect_timeout(&(guest, 5000).into(), Duration::from_secs(5)).ok();
        stream.is_some()
    });
    let mut stream = stream?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let reading = stream.try_clone().ok()?;
    let reader = thread::spawn(move || receive(reading));
    stream.write_all(content).ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    reader.join().ok()
}

#[test]
fn two_network_devices_have_their_own_addresses() {
    needs_linux!();
    let hosts = [Ipv4Addr::new(10, 77, 2, 1), Ipv4Addr::new(10, 77, 3, 1)];
    let wanted = [("bothylinux2", hosts[0]), ("bothylinux3", hosts[1])];
    let Some(taps) = taps("two_network_devices_have_their_own_addresses", wanted) else { return };
    let script = "
        for n in 0 1; do
            echo mac=$(cat /sys/class/net/eth$n/address)
            echo address=$(ip -4 -o addr show dev eth$n | sed 's/.*inet \\([^ ]*\\).*/\\1/')
        done
        for host in 10.77.2.1 10.77.3.1; do ping -c 2 -W 20 $host >/dev/null && echo ping=$host; done
        echo ready=yes
        read -r _";
    let mut vm = Guest::new()
        .args(["--net", &format!("tap={},mac=02:00:00:00:77:12,ip=10.77.2.2/24", taps[0].name())])
        .args(["--net", &format!("tap={},mac=02:00:00:00:77:13,ip=10.77.3.2/24", taps[1].name())])
        .change(support::Bothy::open_input)
        .script(script)
        .start();
    vm.wait_for("ready=yes");
    let pinged: Vec<_> = [Ipv4Addr::new(10, 77, 2, 2), Ipv4Addr::new(10, 77, 3, 2)]
        .map(|guest| answers_ping(guest, Duration::from_secs(20)).unwrap_or(false))
        .into();
    vm.running.type_in(b"\n");
    let console = vm.ends_with(0);
    console.insist(pinged == [true, true], "the guest does not answer pings");
    console
        .insist(console.values("mac") == ["02:00:00:00:77:12", "02:00:00:00:77:13"], "wrong MAC addresses");
    console.insist(console.values("address") == ["10.77.2.2/24", "10.77.3.2/24"], "wrong addresses");
    console.insist(console.values("ping") == ["10.77.2.1", "10.77.3.1"], "the host does not answer pings");
}
