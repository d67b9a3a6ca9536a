use std::io::{Read, Write};

use bothy_guest::protocol::{ProcessId, VERSION, send};

use super::*;

const INIT: ProcessId = ProcessId { container: 1, process: 1 };

struct Peer {
    agent: Agent,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Peer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vsock = dir.path().join("v");
        let agent = Agent::listen(&vsock).unwrap();
        Self { agent, path: dir.path().join("v_1024"), _dir: dir }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    fn control(&mut self) -> UnixStream {
        let mut socket = self.connect();
        send(&mut socket, &Opening::Control(Hello { version: VERSION, uptime_us: 7 })).unwrap();
        assert!(matches!(self.events()[..], [Event::Hello(Hello { uptime_us: 7, .. })]));
        socket
    }

    /// What happens within a moment: a connection takes one call to be accepted and another one to
    /// be read.
    fn events(&mut self) -> Vec<Event> {
        (0..3).flat_map(|_| self.agent.serve().unwrap()).collect()
    }
}

#[test]
fn requests_and_reports_pass_on_the_control_connection() {
    let mut peer = Peer::new();
    assert!(peer.agent.send(&Request::PowerOff).is_err(), "nobody is there");
    let mut control = peer.control();
    peer.agent.send(&Request::Figures).unwrap();
    let request: Request = protocol::receive(&mut control, protocol::MAX_REQUEST).unwrap();
    assert_eq!(request, Request::Figures);
    send(&mut control, &Report::Ready).unwrap();
    send(&mut control, &Report::Started { id: INIT }).unwrap();
    let events = peer.events();
    assert!(
        matches!(events[..], [Event::Report(Report::Ready), Event::Report(Report::Started { id: INIT })]),
        "{events:?}"
    );
}

#[test]
fn a_request_larger_than_the_sockets_buffer_arrives_whole() {
    let mut peer = Peer::new();
    let mut control = peer.control();
    let command = protocol::Command {
        args: vec![vec![b'x'; 3 << 20]],
        env: Vec::new(),
        cwd: b"/".to_vec(),
        user: String::new(),
        rights: bothy_guest::spec::Rights::default(),
        stdio: protocol::Stdio::Pipes { stdin: None, stdout: Token([1; 16]), stderr: Token([2; 16]) },
    };
    let request = Request::Run { id: INIT, command: Box::new(command) };
    peer.agent.send(&request).unwrap();
    let reader = std::thread::spawn(move || -> Request {
        protocol::receive(&mut control, protocol::MAX_REQUEST).unwrap()
    });
    while !reader.is_finished() {
        peer.events();
    }
    assert_eq!(reader.join().unwrap(), request);
}

#[test]
fn a_stream_is_handed_out_once_for_its_token_with_all_that_follows_its_opening() {
    let mut peer = Peer::new();
    let token = peer.agent.token().unwrap();
    let mut socket = peer.connect();
    let mut bytes = protocol::encode(&Opening::Stream(token)).unwrap();
    bytes.extend(b"first");
    socket.write_all(&bytes).unwrap();
    let events = peer.events();
    let [Event::Stream(got, stream)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*got, token);
    let mut stream = stream;
    socket.write_all(b"more").unwrap();
    let mut more = [0; 9];
    stream.read_exact(&mut more).unwrap();
    assert_eq!(&more, b"firstmore");
    let mut again = peer.connect();
    send(&mut again, &Opening::Stream(token)).unwrap();
    assert!(peer.events().is_empty());
    assert_eq!(again.read(&mut more).unwrap(), 0, "it is closed");
}

#[test]
fn who_guesses_a_token_or_says_that_it_is_the_agent_too_is_sent_away() {
    let mut peer = Peer::new();
    let _control = peer.control();
    for opening in
        [Opening::Stream(Token([0; 16])), Opening::Control(Hello { version: VERSION, uptime_us: 0 })]
    {
        let mut socket = peer.connect();
        send(&mut socket, &opening).unwrap();
        assert!(peer.events().is_empty());
        assert_eq!(socket.read(&mut [0]).unwrap(), 0, "{opening:?}");
    }
}

#[test]
fn nonsense_on_the_control_connection_is_told_and_ends_it() {
    let mut peer = Peer::new();
    let mut control = peer.control();
    control.write_all(&[0xff; 8]).unwrap();
    let events = peer.events();
    assert!(matches!(events[..], [Event::Broken(_)]), "{events:?}");
    assert_eq!(control.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn an_agent_that_comes_again_is_heard() {
    let mut peer = Peer::new();
    drop(peer.control());
    assert!(matches!(peer.events()[..], [Event::Gone]));
    let _control = peer.control();
}

#[test]
fn a_flood_of_connections_gets_a_bounded_turn() {
    log::set_max_level(log::LevelFilter::Warn);
    let mut peer = Peer::new();
    let _control = peer.control();
    let flood: Vec<UnixStream> = (0..MAX_ACCEPTED + 20).map(|_| peer.connect()).collect();
    assert!(peer.agent.serve().unwrap().is_empty());
    assert_eq!(peer.agent.unknown.len(), MAX_ACCEPTED);
    // Each is sent away for what it says, and few of them get a line.
    for mut socket in flood {
        let hello = Opening::Control(Hello { version: VERSION, uptime_us: 0 });
        // It may be closed already.
        let _closed = send(&mut socket, &hello);
        assert!(peer.agent.serve().unwrap().is_empty());
    }
    assert!(!peer.agent.log.warn("one more"));
}

#[test]
fn connections_that_say_nothing_are_bounded() {
    let mut peer = Peer::new();
    let mut first = peer.connect();
    peer.events();
    let _others: Vec<UnixStream> = (0..MAX_UNKNOWN)
        .map(|_| {
            let socket = peer.connect();
            peer.events();
            socket
        })
        .collect();
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "the oldest is closed");
    assert!(peer.agent.deadline().is_some());
    let _control = peer.control();
}

#[test]
fn the_socket_goes_with_the_agent() {
    let Peer { agent, path, _dir } = Peer::new();
    assert!(path.exists());
    drop(agent);
    assert!(!path.exists());
}
