//! One HTTP request and its answer: timeouts, proxies, TLS. Knows nothing of registries.
//!
//! Names of this machine, `localhost` and what is below it, are not looked up.
//!
//! Nothing here follows a redirect, repeats a request, or has an opinion on a status. There is no
//! limit for a whole answer, which may be large, but one for every wait: connecting, and each read
//! and write.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, Proxy};

use super::address::{host, is_https, is_localhost, port};
use super::error::RegistryError;
use super::proxy::Proxies;
use super::roots;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(in crate::image) struct Patience {
    /// To connect, TLS included.
    pub(super) connect: Duration,
    /// For one read or write: a connection on which nothing comes for so long is given up.
    pub(super) stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), stall: Duration::from_secs(60) }
    }
}

/// Connections, kept for as long as they may be needed again.
#[derive(Debug)]
pub(super) struct Http {
    patience: Patience,
    proxies: Proxies,
    roots: OnceLock<Arc<Vec<Certificate<'static>>>>,
    /// By whether they have TLS, and by proxy.
    agents: Mutex<HashMap<(bool, Option<Proxy>), Agent>>,
}

/// What is sent.
#[derive(Debug, Default)]
pub(super) struct Request<'a> {
    pub(super) accept: Option<&'a str>,
    /// The header's value.
    pub(super) authorization: Option<&'a str>,
    /// From this byte on.
    pub(super) from: u64,
    /// For a POST.
    pub(super) form: Option<&'a [(&'a str, &'a str)]>,
    /// Instead of the usual time to connect.
    pub(super) connect: Option<Duration>,
}

impl Http {
    pub(super) fn new(patience: Patience) -> Self {
        let proxies = Proxies::from_env(|name| std::env::var(name).ok());
        Self { patience, proxies, roots: OnceLock::new(), agents: Mutex::default() }
    }

    /// Sends it, and gives the answer's head; its body is read by the caller.
    pub(super) fn send(&self, url: &Uri, request: &Request<'_>) -> Result<Response<Body>, RegistryError> {
        let agent = self.agent(url)?;
        let failed = |error| transport(url, error);
        // Bytes as they are: digests are of those.
        let mut headers = vec![("Accept-Encoding", "identity".to_owned())];
        let mut add = |name, value: Option<&str>| headers.extend(value.map(|value| (name, value.to_owned())));
        add("Accept", request.accept);
        add("Authorization", request.authorization);
        if request.from > 0 {
            headers.push(("Range", format!("bytes={}-", request.from)));
        }
        let connect = request.connect.unwrap_or(self.patience.connect);
        if let Some(form) = request.form {
            let post =
                headers.into_iter().fold(agent.post(url), |post, (name, value)| post.header(name, value));
            return post.send_form(form.iter().copied()).map_err(failed);
        }
        let get = headers.into_iter().fold(agent.get(url), |get, (name, value)| get.header(name, value));
        let get = if connect == self.patience.connect {
            get
        } else {
            get.config().timeout_connect(Some(connect)).build()
        };
        get.call().map_err(failed)
    }

    fn agent(&self, url: &Uri) -> Result<Agent, RegistryError> {
        let key = (is_https(url), self.proxies.for_url(url)?);
        // Nothing panics under this lock.
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let needs_tls =
            key.0 || key.1.as_ref().is_some_and(|proxy| proxy.protocol() == ureq::ProxyProtocol::Https);
        let mut tls = TlsConfig::builder();
        if needs_tls {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            tls = tls
                .unversioned_rustls_crypto_provider(provider)
                .root_certs(RootCerts::Specific(self.roots()?));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("bothy/", env!("CARGO_PKG_VERSION")))
            .proxy(key.1.clone())
            .tls_config(tls.build())
            .timeout_connect(Some(self.patience.connect))
            .timeout_per_read(Some(self.patience.stall))
            .timeout_per_write(Some(self.patience.stall))
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::default(), Names::default());
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    fn roots(&self) -> Result<Arc<Vec<Certificate<'static>>>, RegistryError> {
        if let Some(roots) = self.roots.get() {
            return Ok(roots.clone());
        }
        let roots = Arc::new(roots::load(|name| std::env::var_os(name))?);
        Ok(self.roots.get_or_init(|| roots).clone())
    }
}

/// Looks names up, but not those of this machine.
#[derive(Debug, Default)]
struct Names {
    system: DefaultResolver,
}

impl Resolver for Names {
    fn resolve(
        &self,
        url: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        if !is_localhost(&host(url)) {
            return self.system.resolve(url, config, timeout);
        }
        let mut addresses = self.empty();
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            addresses.push(SocketAddr::new(loopback, port(url)));
        }
        Ok(addresses)
    }
}

/// An error of the connection, in words that name the host.
fn transport(url: &Uri, error: ureq::Error) -> RegistryError {
    let transient = match &error {
        ureq::Error::Io(error) => tls_error(error).is_none(),
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
        _ => false,
    };
    let source = match error {
        ureq::Error::Timeout(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        ureq::Error::HostNotFound => io::Error::new(io::ErrorKind::NotFound, "there is no such host"),
        error => error.into_io(),
    };
    RegistryError::Transport {
        host: url.authority().map_or_else(|| host(url), ToString::to_string),
        source,
        transient,
    }
}

/// The same for what a body's reader says: nothing but the connection can be at fault.
pub(super) fn broken(url: &Uri, error: io::Error) -> RegistryError {
    transport(url, error.into())
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Whether whoever answered there doesn't speak TLS at all. A bad certificate is no such sign.
pub(super) fn is_not_tls(error: &RegistryError) -> bool {
    let RegistryError::Transport { source, .. } = error else { return false };
    match tls_error(source) {
        Some(error) => matches!(error, rustls::Error::InvalidMessage(_)),
        None => matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::TimedOut
        ),
    }
}

/// A header, if it is there once or more, and text.
pub(super) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// A body that is at most `limit` bytes long; `None` if it is longer.
pub(super) fn read(
    url: &Uri,
    response: &mut Response<Body>,
    limit: u64,
) -> Result<Option<Vec<u8>>, RegistryError> {
    if response.body().content_length().is_some_and(|len| len > limit) {
        return Ok(None);
    }
    let bytes = crate::image::digest::read_capped(response.body_mut().as_reader(), limit);
    bytes.map_err(|error| broken(url, error))
}

/// The first bytes of a body, as far as they come.
pub(super) fn beginning(url: &Uri, response: &mut Response<Body>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = response.body_mut().as_reader().take(limit).read_to_end(&mut bytes) {
        log::debug!("{}: {error}", host(url));
    }
    bytes
}

/// Whether a body that isn't JSON is a web page, as its type or its beginning says.
pub(super) fn is_page(response: &Response<Body>, body: &[u8]) -> bool {
    const LOOKED_AT: usize = 1024;
    let begin = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    if matches!(begin, [] | [b'{' | b'[', ..]) {
        return false;
    }
    let kind = header(response, "content-type").unwrap_or_default().to_ascii_lowercase();
    let begin = begin[..begin.len().min(LOOKED_AT)].to_ascii_lowercase();
    let has = |part: &[u8]| begin.windows(part.len()).any(|window| window == part);
    kind.starts_with("text/html") || (begin[0] == b'<' && (has(b"<html") || has(b"<!doctype html")))
}

/// Whether the answer leads elsewhere.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
