use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::connection::BUF_ALLOC;
use super::muxer::{GREETING_TIME, MAX_CONNECTIONS, MAX_GREETINGS};
use super::packet::{HEADER_LEN, Op, Ports};
use super::testing::*;
use super::*;
use crate::virtio::core::spec::vsock::{SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND};
use crate::virtio::core::testing::*;
use crate::virtio::core::transport::Attached;

#[test]
fn the_configuration_space_has_the_context_id() {
    let guest = Guest::new();
    assert_eq!(u64::from_le_bytes(guest.driver.config(0)), CID);
}

#[test]
fn a_guest_reaches_a_service_of_the_host() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    guest.send(Op::Rw, ports, 0, b"from the guest");
    assert_eq!(read(&mut host, 14), b"from the guest");
    host.write_all(b"from the host").unwrap();
    assert_eq!(guest.expect(Op::Rw, ports).1, b"from the host");
}

#[test]
fn the_host_reaches_a_port_of_the_guest() {
    let mut guest = Guest::new();
    let mut host = patient(UnixStream::connect(guest.path()).unwrap());
    // What comes behind the line is the guest's already, before it has answered.
    host.write_all(b"CONNECT 52\nearly").unwrap();
    let (request, _) = guest.receive();
    assert_eq!((request.op, request.ports.guest), (Some(Op::Request), 52));
    assert!(request.ports.host >= 1 << 30);
    guest.expect_silence();
    guest.send(Op::Response, request.ports, 0, b"");
    let answer = format!("OK {}\n", request.ports.host);
    assert_eq!(read(&mut host, answer.len()), answer.as_bytes());
    assert_eq!(guest.expect(Op::Rw, request.ports).1, b"early");
    guest.send(Op::Rw, request.ports, 0, b"hello");
    assert_eq!(read(&mut host, 5), b"hello");
}

#[test]
fn a_port_that_the_guest_refuses_closes_the_hosts_socket() {
    let mut guest = Guest::new();
    let mut host = patient(UnixStream::connect(guest.path()).unwrap());
    host.write_all(b"CONNECT 52\n").unwrap();
    let (request, _) = guest.receive();
    guest.send(Op::Rst, request.ports, 0, b"");
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    guest.expect_silence();
}

#[test]
fn nonsense_from_the_host_closes_its_socket_and_the_guest_hears_nothing() {
    let mut guest = Guest::new();
    let mut host = patient(UnixStream::connect(guest.path()).unwrap());
    host.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(host.read(&mut [0]), Ok(0) | Err(_)));
    guest.expect_silence();
    guest.works(7);
}

#[test]
fn somebody_who_gives_up_before_the_guest_answers_is_told_to_it() {
    let mut guest = Guest::new();
    let mut host = patient(UnixStream::connect(guest.path()).unwrap());
    host.write_all(b"CONNECT 52\n").unwrap();
    let (request, _) = guest.receive();
    drop(host);
    guest.expect(Op::Rst, request.ports);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    // The host first.
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Op::Rw, ports).1, b"last words");
    assert_eq!(guest.expect(Op::Shutdown, ports).0.flags, SHUTDOWN_SEND);
    // The guest goes on, and then ends as well.
    guest.send(Op::Rw, ports, 0, b"still here");
    assert_eq!(read(&mut host, 10), b"still here");
    guest.send(Op::Shutdown, ports, SHUTDOWN_SEND, b"");
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    // Nothing is left of the connection once the host has closed and the guest has heard of it.
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown, ports).0.flags, SHUTDOWN_RCV);
    guest.send(Op::Rst, ports, 0, b"");
    guest.send(Op::Rw, ports, 0, b"to nobody");
    guest.expect(Op::Rst, ports);
}

#[test]
fn a_guest_that_ends_both_directions_gets_a_reset_when_everything_is_delivered() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    // More than the socket takes at once.
    let sent = fill(&mut guest, ports);
    guest.send(Op::Shutdown, ports, SHUTDOWN_BOTH, b"");
    guest.expect_silence();
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, sent);
    loop {
        let (packet, _) = guest.receive();
        match packet.op {
            Some(Op::CreditUpdate) => {}
            op => break assert_eq!(op, Some(Op::Rst)),
        }
    }
}

/// Sends as the credit allows, to a host that doesn't read, until there is none left.
fn fill(guest: &mut Guest, ports: Ports) -> Vec<u8> {
    let mut sent = Vec::new();
    let (mut told, mut quiet_since) = (0, Instant::now());
    while quiet_since.elapsed() < Duration::from_millis(200) {
        while let Some((head, len)) = guest.driver.queues[RX].used() {
            let (packet, _) = guest.take(head, len);
            assert_eq!(packet.op, Some(Op::CreditUpdate));
            (told, quiet_since) = (packet.fwd_cnt, Instant::now());
        }
        let room = BUF_ALLOC - (u32::try_from(sent.len()).unwrap() - told);
        let piece = pattern(sent.len() + room.min(4096) as usize)[sent.len()..].to_vec();
        if !piece.is_empty() {
            guest.send(Op::Rw, ports, 0, &piece);
            sent.extend(piece);
            quiet_since = Instant::now();
        }
    }
    sent
}

#[test]
fn the_host_sends_only_what_the_guest_has_room_for() {
    let mut guest = Guest::new();
    guest.credit = 10;
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    host.write_all(&pattern(25)).unwrap();
    assert_eq!(guest.expect(Op::Rw, ports).1, pattern(25)[..10]);
    guest.expect(Op::CreditRequest, ports);
    guest.expect_silence();
    guest.consumed = 10;
    guest.send(Op::CreditUpdate, ports, 0, b"");
    assert_eq!(guest.expect(Op::Rw, ports).1, pattern(25)[10..20]);
    guest.expect(Op::CreditRequest, ports);
    // An answer that gives nothing isn't asked for again: the guest would answer for ever.
    guest.send(Op::CreditUpdate, ports, 0, b"");
    guest.expect_silence();
    guest.consumed = 20;
    guest.send(Op::CreditUpdate, ports, 0, b"");
    assert_eq!(guest.expect(Op::Rw, ports).1, pattern(25)[20..]);
}

#[test]
fn a_guest_that_claims_to_have_received_what_was_never_sent_gets_nothing_more() {
    let mut guest = Guest::new();
    guest.credit = 100;
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    guest.consumed = 50;
    guest.send(Op::CreditUpdate, ports, 0, b"");
    host.write_all(b"x").unwrap();
    guest.expect(Op::CreditRequest, ports);
    guest.expect_silence();
}

#[test]
fn a_guest_that_asks_for_credit_is_told() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    guest.send(Op::Rw, ports, 0, b"12345");
    read(&mut host, 5);
    guest.send(Op::CreditRequest, ports, 0, b"");
    let (update, _) = guest.expect(Op::CreditUpdate, ports);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (BUF_ALLOC, 5));
}

#[test]
fn a_guest_that_sends_more_than_its_credit_loses_the_connection_and_no_other() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, _host) = guest.connect(&service, 7);
    let sent = fill(&mut guest, ports);
    assert!(sent.len() > BUF_ALLOC as usize, "the socket takes some as well");
    // What has left for the socket without its being told may still be sent; a whole buffer more
    // may not.
    let mut too_much = 0;
    let reset = loop {
        if let Some((head, len)) = guest.driver.queues[RX].used() {
            break guest.take(head, len).0;
        }
        assert!(too_much <= BUF_ALLOC, "the buffer grows");
        guest.send(Op::Rw, ports, 0, &[0; 4096]);
        too_much += 4096;
    };
    assert_eq!((reset.op, reset.ports), (Some(Op::Rst), ports));
    guest.works(8);
}

#[test]
fn a_reader_that_stalls_holds_up_nobody_else() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (stalled, mut slow) = guest.connect(&service, 7);
    let sent = fill(&mut guest, stalled);
    guest.works(8);
    // And nothing is lost when it reads again.
    let mut bytes = vec![0; sent.len()];
    slow.read_exact(&mut bytes).unwrap();
    assert!(bytes == sent);
}

#[test]
fn a_mebibyte_passes_both_ways_exactly() {
    let mut guest = Guest::new();
    guest.credit = 64 << 10;
    let service = guest.service(7);
    let (ports, host) = guest.connect(&service, 7);
    let content = pattern(1 << 20);
    let mut writer = host.try_clone().unwrap();
    let to_guest = content.clone();
    let thread = std::thread::spawn(move || writer.write_all(&to_guest).unwrap());
    assert!(guest.receive_bytes(ports, content.len()) == content);
    thread.join().unwrap();

    let mut reader = host;
    let len = content.len();
    let thread = std::thread::spawn(move || read(&mut reader, len));
    let mut told = 0;
    for (at, piece) in (0..).step_by(4096).zip(content.chunks(4096)) {
        while at + 4096 - told > BUF_ALLOC {
            let (packet, _) = guest.receive();
            told = packet.fwd_cnt;
        }
        guest.send(Op::Rw, ports, 0, piece);
    }
    assert!(thread.join().unwrap() == content);
}

#[test]
fn what_belongs_to_no_connection_gets_a_reset_unless_it_is_one() {
    let mut guest = Guest::new();
    let ports = Ports { guest: 5, host: 6 };
    for op in [Op::Request, Op::Response, Op::Rw, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(op, ports, 0, b"");
        guest.expect(Op::Rst, ports);
    }
    guest.send(Op::Rst, ports, 0, b"");
    guest.expect_silence();
}

#[test]
fn a_malformed_packet_resets_its_connection_and_no_other() {
    let ports = Ports { guest: 5, host: 7 };
    type Spoil = fn(&mut Vec<u8>);
    let spoil: [(&str, Spoil); 6] = [
        ("another sender", |bytes| bytes[0] = 9),
        ("another receiver", |bytes| bytes[8] = 9),
        ("no stream", |bytes| bytes[28] = 2),
        ("no operation", |bytes| bytes[30] = 99),
        ("longer than it is", |bytes| bytes[24] = 1),
        ("a second request", |bytes| bytes[30] = 1),
    ];
    for (what, spoil) in spoil {
        let mut guest = Guest::new();
        let service = guest.service(7);
        let (_, mut host) = guest.connect_from(&service, ports);
        let mut bytes = header(ports, Op::Rw as u16, 0);
        spoil(&mut bytes);
        guest.send_raw(&bytes);
        guest.expect(Op::Rst, ports);
        assert_eq!(host.read(&mut [0]).unwrap(), 0, "{what}");
        guest.works(8);
    }
}

#[test]
fn something_too_short_for_a_header_is_used_up() {
    let mut guest = Guest::new();
    guest.send_raw(&[0; HEADER_LEN - 1]);
    guest.expect_silence();
    guest.works(8);
}

#[test]
fn a_host_that_goes_away_is_told_and_what_the_guest_sends_is_dropped() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, host) = guest.connect(&service, 7);
    drop(host);
    let mut told = 0;
    while told != SHUTDOWN_BOTH {
        told |= guest.expect(Op::Shutdown, ports).0.flags;
    }
    guest.send(Op::Rw, ports, 0, b"to nobody");
    guest.send(Op::Shutdown, ports, SHUTDOWN_BOTH, b"");
    guest.expect(Op::Rst, ports);
}

#[test]
fn a_driver_that_starts_again_has_no_connections() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    guest.driver.start(u64::MAX);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    guest.buffers.clear();
    guest.add_buffers(4);
    guest.send(Op::Rw, ports, 0, b"x");
    guest.expect(Op::Rst, ports);
    guest.works(8);
}

#[test]
fn there_is_a_limit_to_connections_and_room_again_when_they_end() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let thread = std::thread::spawn(move || {
        (0..MAX_CONNECTIONS).map(|_| service.accept().unwrap().0).collect::<Vec<_>>()
    });
    let limit = u32::try_from(MAX_CONNECTIONS).unwrap();
    for port in 0..limit {
        // The service's own queue may be full for a moment.
        let ports = Ports { guest: port, host: 7 };
        let start = Instant::now();
        loop {
            guest.send(Op::Request, ports, 0, b"");
            if guest.receive().0.op == Some(Op::Response) {
                break;
            }
            assert!(start.elapsed() < PATIENCE);
        }
    }
    let _streams = thread.join().unwrap();
    let one_more = Ports { guest: limit, host: 7 };
    guest.send(Op::Request, one_more, 0, b"");
    guest.expect(Op::Rst, one_more);
    let mut host = patient(UnixStream::connect(guest.path()).unwrap());
    assert_eq!(host.read(&mut [0]).unwrap(), 0, "nor can the host have one");
    guest.send(Op::Rst, Ports { guest: 0, host: 7 }, 0, b"");
    guest.works(8);
}

#[test]
fn a_guest_that_takes_no_answers_waits_for_itself_alone() {
    let mut guest = Guest::starved();
    // Answers pile up to their limit, and then its packets stay where they are.
    for port in 0..1000 {
        let bytes = header(Ports { guest: port, host: 6 }, Op::Rw as u16, 0);
        guest.driver.mem.write_slice(&bytes, GuestAddress(guest.tx_buffer)).unwrap();
        guest.driver.queues[TX].add(&[Part::Read(guest.tx_buffer, 44)]);
        guest.driver.notify(1);
        let start = Instant::now();
        while guest.driver.queues[TX].used().is_none() {
            if start.elapsed() > Duration::from_millis(300) {
                assert!((200..600).contains(&port), "{port} packets were taken");
                // It is served again as soon as it gives buffers.
                guest.add_buffers(8);
                for port in 0..=port {
                    guest.expect(Op::Rst, Ports { guest: port, host: 6 });
                }
                guest.driver.wait_used(TX);
                return guest.works(8);
            }
        }
    }
    panic!("there was no limit");
}

#[test]
fn random_packets_do_no_harm() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (keep, mut host) = guest.connect_from(&service, Ports { guest: 1, host: 7 });
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut below = move |limit: u64| u32::try_from(random() % limit).unwrap();
    service.set_nonblocking(true).unwrap();
    let mut accepted = Vec::new();
    for _ in 0..5000 {
        let ports = Ports { guest: 100 + below(20), host: 5 + below(4) };
        let mut bytes = header(ports, u16::try_from(below(10)).unwrap(), 0);
        for _ in 0..below(3) {
            bytes[24 + below(20) as usize] = u8::try_from(below(256)).unwrap();
        }
        bytes.extend(pattern(below(64) as usize));
        guest.send_raw(&bytes);
        accepted.extend(service.accept().ok());
        while let Some((head, len)) = guest.driver.queues[RX].used() {
            guest.take(head, len);
        }
    }
    guest.send(Op::Rw, keep, 0, b"still there");
    assert_eq!(read(&mut host, 11), b"still there");
}

#[test]
fn a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { path: dir.path().join("vsock"), cid: None };
    drop(UnixListener::bind(&config.path).unwrap());
    let first = config.listen().unwrap();
    let Err(error) = config.listen() else { panic!("two listen at one path") };
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    first.place().clean_up();
    assert!(!config.path.exists());
    // A file is nothing that was left behind, and what has come to the place of our socket is not
    // ours.
    std::fs::write(&config.path, "precious").unwrap();
    assert!(config.listen().is_err());
    first.place().clean_up();
    assert_eq!(std::fs::read(&config.path).unwrap(), b"precious");
}

#[test]
fn a_configuration_is_checked_before_anything_is_opened() {
    let config = |path: &str, cid| Config { path: path.into(), cid };
    assert_eq!(config("a", None).validate(), Ok(()));
    for cid in [0, 2, u32::MAX] {
        assert_eq!(config("a", Some(cid)).validate(), Err(ConfigError::Cid(cid)));
    }
    for path in ["", &"a".repeat(97)] {
        assert_eq!(config(path, None).validate(), Err(ConfigError::Path(path.into())));
    }
}

/// CPU time of a thread, by its name, in clock ticks.
fn ticks(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let named =
        tasks.filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    named
        .filter_map(|task| std::fs::read_to_string(task.join("stat")).ok())
        .map(|stat| {
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        })
        .sum()
}

#[test]
fn nothing_is_done_where_nothing_is_to_do() {
    let mut guest = Guest::named("vs-idle");
    guest.credit = 4;
    let service = guest.service(7);
    // The guest has ended its direction; the host hasn't, and has more than the guest takes.
    let (ports, mut host) = guest.connect(&service, 7);
    guest.send(Op::Shutdown, ports, SHUTDOWN_SEND, b"");
    host.write_all(b"12345678").unwrap();
    guest.expect(Op::Rw, ports);
    guest.expect(Op::CreditRequest, ports);
    // One that is over on the host's side, and that the guest doesn't end.
    let (over, gone) = guest.connect_from(&service, Ports { guest: 5, host: 7 });
    drop(gone);
    guest.expect(Op::Shutdown, over);
    let before = ticks("vs-idle");
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks("vs-idle") - before <= 10, "the thread is busy: {} ticks", ticks("vs-idle") - before);
}

#[test]
fn what_a_guest_sent_before_it_closed_arrives_even_if_it_gives_up_waiting() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    let sent = fill(&mut guest, ports);
    guest.send(Op::Shutdown, ports, SHUTDOWN_BOTH, b"");
    // Linux resets a connection that isn't reset within 8 seconds.
    guest.send(Op::Rst, ports, 0, b"");
    // The ports are free again meanwhile.
    let (again, mut other) = guest.connect_from(&service, ports);
    guest.send(Op::Rw, again, 0, b"another one");
    assert_eq!(read(&mut other, 11), b"another one");
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert!(bytes == sent, "{} of {}", bytes.len(), sent.len());
    guest.send(Op::Rw, again, 0, b"still there");
    assert_eq!(read(&mut other, 11), b"still there");
}

#[test]
fn connections_that_come_and_go_while_the_guest_takes_nothing_leave_nothing() {
    let mut guest = Guest::starved();
    let service = guest.service(7);
    for _ in 0..2000 {
        guest.send(Op::Request, Ports { guest: 5, host: 7 }, 0, b"");
        drop(accept(&service));
        guest.send(Op::Rst, Ports { guest: 5, host: 7 }, 0, b"");
    }
    for _ in 0..2000 {
        let mut host = UnixStream::connect(guest.path()).unwrap();
        host.write_all(b"CONNECT 52\n").unwrap();
    }
    guest.add_buffers(8);
    // Nothing of all that is told to the guest, but what was there when it began to listen.
    std::thread::sleep(Duration::from_millis(200));
    let mut told = 0;
    while let Some((head, len)) = guest.driver.queues[RX].used() {
        guest.take(head, len);
        told += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(told < 20, "{told} packets waited");
    guest.works(8);
}

#[test]
fn a_driver_that_goes_on_hears_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    let service = guest.service(7);
    let (ports, mut host) = guest.connect(&service, 7);
    let event = guest.driver.alloc(4);
    guest.driver.queues[EVENT].add(&[Part::Write(event, 4)]);
    guest.driver.suspend();
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the host's end is closed");
    guest.driver.transport.resume();
    assert_eq!(guest.driver.wait_used(EVENT).1, 4);
    assert_eq!(guest.driver.bytes(event, 4), [0; 4]);
    guest.send(Op::Rw, ports, 0, b"still there?");
    guest.expect(Op::Rst, ports);
    guest.works(8);
    // A driver without a buffer for it hears it when it has one, and only once.
    guest.driver.suspend();
    guest.driver.transport.resume();
    guest.works(9);
    guest.driver.mem.write_slice(&[0xee; 4], GuestAddress(event)).unwrap();
    for _ in 0..2 {
        guest.driver.queues[EVENT].add(&[Part::Write(event, 4)]);
        guest.driver.notify(2);
    }
    assert_eq!(guest.driver.wait_used(EVENT).1, 4);
    assert_eq!(guest.driver.bytes(event, 4), [0; 4]);
    guest.works(10);
    assert_eq!(guest.driver.queues[EVENT].used(), None);
    // One that has just started has none to lose.
    guest.driver.start(u64::MAX);
    guest.driver.queues[EVENT].add(&[Part::Write(event, 4)]);
    guest.driver.notify(2);
    guest.expect_silence();
    assert_eq!(guest.driver.queues[EVENT].used(), None);
}

#[test]
fn who_says_no_port_in_time_is_dropped_and_so_is_the_oldest_of_too_many() {
    let mut guest = Guest::new();
    let connect = || patient(UnixStream::connect(guest.path()).unwrap());
    let start = Instant::now();
    let mut silent = connect();
    silent.write_all(b"CONNECT 5").unwrap();
    let mut others: Vec<UnixStream> = (1..MAX_GREETINGS).map(|_| connect()).collect();
    // One more than there is room for, which is served at once.
    let mut host = connect();
    host.write_all(b"CONNECT 52\n").unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert!(start.elapsed() < GREETING_TIME, "the oldest made room");
    for other in &mut others {
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }
    assert!((GREETING_TIME..2 * GREETING_TIME).contains(&start.elapsed()), "{:?}", start.elapsed());
    // What is under way is not late.
    let (request, _) = guest.receive();
    guest.send(Op::Response, request.ports, 0, b"");
    assert_eq!(read(&mut host, 3), b"OK ");
}

#[test]
fn sockets_are_for_their_user_alone() {
    let mut guest = Guest::new();
    assert_eq!(guest.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // A service at the end of a link may be another one's.
    let service = UnixListener::bind(guest.dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", host::service(&guest.path(), 7)).unwrap();
    let ports = Ports { guest: 1, host: 7 };
    guest.send(Op::Request, ports, 0, b"");
    guest.expect(Op::Rst, ports);
    service.set_nonblocking(true).unwrap();
    assert_eq!(service.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn another_user_is_neither_served_nor_connected_to() {
    if !rustix::process::geteuid().is_root() {
        return println!("COULD NOT RUN: sockets of another user (needs root)");
    }
    let mut guest = Guest::new();
    let (path, dir) = (guest.path(), guest.dir.path().to_owned());
    for path in [&path, &dir] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let place = host::service(&path, 7);
    let stranger = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65534);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut host = patient(UnixStream::connect(path).unwrap());
        assert!(matches!(host.read(&mut [0]), Ok(0) | Err(_)), "its socket is closed");
        UnixListener::bind(place).unwrap()
    });
    let _service = stranger.join().unwrap();
    let ports = Ports { guest: 1, host: 7 };
    guest.send(Op::Request, ports, 0, b"");
    guest.expect(Op::Rst, ports);
    guest.expect_silence();
}
