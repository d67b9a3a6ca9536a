//! Configures the network as the kernel command line says. An interface that fails is reported and
//! left as it is: a machine without network still boots.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bothy_guest::addr::{IpPrefix, MacAddr};
use bothy_guest::cmdline::Word;
use bothy_guest::net::NetConfig;
use bothy_guest::netlink::Netlink;
use bothy_guest::{KEY_NET, net};

use crate::say;

/// How long to wait for an interface: drivers may still be at work when init starts.
const INTERFACE_WAIT: Duration = Duration::from_secs(2);
const INTERFACE_POLL: Duration = Duration::from_millis(2);

/// A network interface of the machine.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    /// The addresses that we gave it.
    pub(crate) addresses: Vec<IpPrefix>,
}

/// What became of the network.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) interfaces: Vec<Interface>,
    /// The DNS servers of all interfaces.
    pub(crate) dns: Vec<IpAddr>,
    /// What did not work, each in words. The rest did.
    pub(crate) failures: Vec<String>,
}

/// Brings `lo` and the interfaces of all `bothy.net` words up, and writes `/etc/resolv.conf` if
/// there is a DNS server.
pub(crate) fn configure(words: &[Word]) -> Vec<Interface> {
    let texts = words.iter().filter(|word| word.key == KEY_NET);
    let network = bring_up(texts.map(|word| word.value.as_deref().unwrap_or_default()));
    for failure in &network.failures {
        say!("{failure}");
    }
    if !network.dns.is_empty()
        && let Err(error) = fs::write("/etc/resolv.conf", resolv_conf(&network.dns))
    {
        say!("/etc/resolv.conf: {error}");
    }
    network.interfaces
}

/// Brings `lo` up, and each interface that a text describes as [`NetConfig`] writes it.
pub(crate) fn bring_up<'a>(texts: impl Iterator<Item = &'a str>) -> Network {
    let mut network = Network::default();
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => {
            network.failures.push(format!("no network: {error}"));
            return network;
        }
    };
    if let Err(error) = index("lo").and_then(|lo| netlink.set_up(lo)) {
        network.failures.push(format!("lo: {error}"));
    }
    for text in texts {
        match configure_one(&mut netlink, text) {
            Ok((interface, config)) => {
                network.interfaces.push(interface);
                network.dns.extend(config.dns);
            }
            Err(error) => network.failures.push(format!("{KEY_NET}={text}: {error}")),
        }
    }
    network
}

fn configure_one(netlink: &mut Netlink, text: &str) -> io::Result<(Interface, NetConfig)> {
    let config: NetConfig = text.parse().map_err(|e: net::ParseNetError| io::Error::other(e))?;
    let name = wait_for(config.mac)?;
    let interface = index(&name)?;
    netlink.set_up(interface)?;
    for &ip in &config.addresses {
        netlink.add_address(interface, ip).map_err(|e| in_context(&e, &format!("ip={ip}")))?;
    }
    for &gateway in &config.gateways {
        let direct = config.addresses.iter().any(|ip| ip.contains(gateway));
        let neighbour = if direct { Ok(()) } else { netlink.add_neighbour_route(interface, gateway) };
        neighbour
            .and_then(|()| netlink.add_default_route(interface, gateway))
            .map_err(|e| in_context(&e, &format!("gw={gateway}")))?;
    }
    Ok((Interface { name, mac: config.mac, addresses: config.addresses.clone() }, config))
}

fn in_context(error: &io::Error, context: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {error}"))
}

/// The machine's interfaces but for `lo`, in the order of their names; without addresses.
pub(crate) fn interfaces() -> Vec<Interface> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut interfaces: Vec<Interface> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mac = fs::read_to_string(entry.path().join("address")).ok()?.trim().parse().ok()?;
            (name != "lo").then_some(Interface { name, mac, addresses: Vec::new() })
        })
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    interfaces
}

fn wait_for(mac: MacAddr) -> io::Result<String> {
    let start = Instant::now();
    loop {
        if let Some(interface) = interfaces().into_iter().find(|interface| interface.mac == mac) {
            return Ok(interface.name);
        }
        if start.elapsed() > INTERFACE_WAIT {
            return Err(io::Error::other("no interface has this MAC address"));
        }
        thread::sleep(INTERFACE_POLL);
    }
}

fn index(name: &str) -> io::Result<u32> {
    let path: PathBuf = ["/sys/class/net", name, "ifindex"].iter().collect();
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// The text of a resolv.conf.
pub(crate) fn resolv_conf(servers: &[IpAddr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}
