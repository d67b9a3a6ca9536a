//! Bytes by TCP. What a connection is for is its first byte.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::say;
use crate::work::measure;

/// Each byte comes back.
const ECHO: u8 = b'e';
/// All bytes are taken, and at their end one comes back.
const SINK: u8 = b's';
/// Bytes come until nobody wants them.
const SOURCE: u8 = b'o';
/// How long bytes pass, each way.
const TIME: Duration = Duration::from_millis(300);
/// A network that has just come up may need a moment.
const PATIENCE: Duration = Duration::from_secs(5);
const PIECE: usize = 256 << 10;

/// Answers each connection by a thread of its own.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    say("ready")?;
    loop {
        let (mut stream, _) = listener.accept()?;
        thread::spawn(move || answer(&mut stream));
    }
}

/// Until either side is tired of it.
fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut what = [0];
    stream.set_nodelay(true)?;
    stream.read_exact(&mut what)?;
    let mut piece = vec![0; PIECE];
    match what[0] {
        SINK => {
            while stream.read(&mut piece)? > 0 {}
            stream.write_all(&[SINK])
        }
        SOURCE => loop {
            stream.write_all(&piece)?;
        },
        _ => loop {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        },
    }
}

/// Prints nanoseconds of a byte there and back, and MiB/s to the other side and from it.
pub(crate) fn net(address: &str) -> io::Result<()> {
    let mut echo = connect(address, ECHO)?;
    measure("round_trip_ns", |turns| {
        (0..turns).try_for_each(|_| {
            echo.write_all(b"x")?;
            echo.read_exact(&mut [0])
        })
    })?;
    let mut piece = vec![0; PIECE];
    let mut sink = connect(address, SINK)?;
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        sink.write_all(&piece)?;
        sent += piece.len();
    }
    sink.shutdown(Shutdown::Write)?;
    // By now the other side has all of it.
    sink.read_exact(&mut [0])?;
    say(format_args!("out_mibs={:.3}", mibs(sent, start)))?;
    let mut source = connect(address, SOURCE)?;
    let (start, mut received) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        received += source.read(&mut piece)?;
    }
    say(format_args!("in_mibs={:.3}", mibs(received, start)))
}

fn connect(address: &str, what: u8) -> io::Result<TcpStream> {
    let start = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() >= PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_nodelay(true)?;
    stream.write_all(&[what])?;
    Ok(stream)
}

fn mibs(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64()
}
