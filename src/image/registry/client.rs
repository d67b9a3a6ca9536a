//! A client of one repository in one registry (OCI distribution-spec 1.1, "Pull"): what is asked
//! for, redirects, and who we say that we are.
//!
//! A registry is hostile. Redirects are counted, and never lead out of TLS. Credentials and tokens
//! go to the registry's own scheme, host and port only, and not there again after another host
//! redirected back. In plain HTTP saved credentials are neither looked up nor sent, unless the user
//! asks for it (`insecure`): plain HTTP to this machine needs no flag, and any process can take a
//! port. docker.io always needs TLS. Callers limit and verify what answers contain.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::Body;
use ureq::http::{Response, Uri};

use super::address::{
    DOCKER_IO, authority, host, host_of, is_https, is_loopback, may_lead, resolve, same_origin, url,
    without_query,
};
use super::auth::Asking;
use super::challenge;
use super::credentials::{self, Credentials};
use super::error::{Login, RegistryError};
use super::http::{self, Http, Patience, Request, header, is_redirect};
use super::retry::Tries;
use super::status::status_error;
use crate::image::digest::Digest;
use crate::image::reference::Reference;

/// Most redirects of one request; registries need one or two.
const MAX_REDIRECTS: usize = 5;
/// How long a server that may not speak TLS has for its answer to a handshake.
const PROBE: Duration = Duration::from_secs(5);
/// What may come as a manifest.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Whoever pulls an image. Several threads may use it at once.
#[derive(Debug)]
pub(in crate::image) struct Client {
    http: Http,
    reference: Reference,
    /// `SCHEME://HOST/v2/`
    base: Uri,
    insecure: bool,
    access: Mutex<Access>,
    /// Whether there was an answer at all.
    reached: AtomicBool,
}

/// What has been found out about getting in.
#[derive(Debug, Default)]
struct Access {
    /// `None` until somebody asks.
    credentials: Option<Option<Credentials>>,
    header: Option<String>,
    /// Counts the headers.
    number: u32,
}

/// An answer with status 200 or 206.
#[derive(Debug)]
pub(super) struct Answer {
    /// Whose it is, after redirects.
    pub(super) url: Uri,
    pub(super) response: Response<Body>,
}

impl Client {
    /// Finds out where the registry is. `insecure` allows plain HTTP on other machines, and saved
    /// credentials in it.
    pub(in crate::image) fn connect(
        reference: &Reference,
        insecure: bool,
        patience: Patience,
    ) -> Result<Self, RegistryError> {
        let at = |https| {
            url(https, authority(reference), "v2/").ok_or_else(|| RegistryError::Answer {
                host: reference.registry.clone(),
                what: "its name can't be part of an address".into(),
            })
        };
        let mut client = Self {
            http: Http::new(patience),
            reference: reference.clone(),
            base: at(true)?,
            // The flag counts for all images of a command, and docker.io has TLS.
            insecure: insecure && reference.registry != DOCKER_IO,
            access: Mutex::default(),
            reached: AtomicBool::new(false),
        };
        if client.insecure || is_loopback(&host(&client.base)) {
            let connect = Some(patience.connect.min(PROBE));
            let probe = client.http.send(&client.base, &Request { connect, ..Request::default() });
            if probe
                .as_ref()
                .is_err_and(|error| http::is_not_tls(error) || matches!(error, RegistryError::Roots { .. }))
            {
                client.base = at(false)?;
            }
        }
        Ok(client)
    }

    /// What errors call the registry.
    pub(super) fn host(&self) -> &str {
        &self.reference.registry
    }

    /// The same for what is at an address, which may be another host.
    pub(super) fn host_at(&self, url: &Uri) -> String {
        if same_origin(url, &self.base) { self.host().into() } else { host_of(url) }
    }

    pub(super) fn wrong(&self, what: impl Into<String>) -> RegistryError {
        RegistryError::Answer { host: self.host().into(), what: what.into() }
    }

    /// A manifest or an index, by tag or digest, of at most `limit` bytes; and its media type, if
    /// it has one.
    pub(super) fn manifest(&self, which: &str, limit: u64) -> Result<(Vec<u8>, String), RegistryError> {
        Tries::run(|| {
            let what = self.what(which);
            let mut answer = self.get(&format!("manifests/{which}"), Some(MANIFESTS), 0, &what)?;
            let bytes = http::read(&answer.url, &mut answer.response, limit)?;
            let bytes = bytes.ok_or_else(|| self.wrong(format!("{what} is longer than {limit} bytes")))?;
            if http::is_page(&answer.response, &bytes) {
                let (host, status) = (self.host_at(&answer.url), answer.response.status().as_u16());
                return Err(RegistryError::WebPage { host, what, status });
            }
            let announced = header(&answer.response, "docker-content-digest").map(str::parse::<Digest>);
            if let Some(Ok(announced)) = announced
                && !announced.fits(&bytes)
            {
                return Err(self.wrong(format!("{what} doesn't have the digest that it announces")));
            }
            let media_type = header(&answer.response, "content-type").unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            Ok((bytes, media_type))
        })
    }

    /// A blob from byte `from` on. One attempt.
    pub(super) fn blob(&self, digest: &Digest, from: u64) -> Result<Answer, RegistryError> {
        self.get(&format!("blobs/{digest}"), None, from, &self.what(&digest.to_string()))
    }

    fn what(&self, which: &str) -> String {
        let separator = if which.contains(':') { '@' } else { ':' };
        format!("{}{separator}{which}", self.reference.repository)
    }

    fn get(&self, path: &str, accept: Option<&str>, from: u64, what: &str) -> Result<Answer, RegistryError> {
        let path = format!("v2/{}/{path}", self.reference.repository);
        let url = url(is_https(&self.base), authority(&self.reference), &path)
            .ok_or_else(|| self.wrong("its name can't be part of an address"))?;
        let mut renewed = false;
        loop {
            let (authorization, number) = {
                let access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
                (access.header.clone(), access.number)
            };
            let request =
                Request { accept, authorization: authorization.as_deref(), from, ..Request::default() };
            let mut answer = self.follow(&url, &request).map_err(|error| self.judge_transport(error))?;
            self.reached.store(true, Ordering::Relaxed);
            let status = answer.response.status().as_u16();
            if matches!(status, 200 | 206) {
                return Ok(answer);
            }
            // Others may not ask for what is only for the registry.
            if status == 401 && !renewed && same_origin(&answer.url, &self.base) {
                let offered = answer.response.headers().get_all("www-authenticate");
                if let Some(challenge) =
                    challenge::choose(offered.iter().filter_map(|value| value.to_str().ok()))
                {
                    self.renew(number, &challenge)?;
                    renewed = true;
                    continue;
                }
            }
            let host = self.host_at(&answer.url);
            let login = self.login(&self.access.lock().unwrap_or_else(PoisonError::into_inner));
            return Err(status_error(&answer.url, host, &mut answer.response, what, login));
        }
    }

    /// Whether saved credentials are not for this connection.
    fn withholds(&self) -> bool {
        !is_https(&self.base) && !self.insecure
    }

    fn login(&self, access: &Access) -> Login {
        match access.credentials {
            _ if self.withholds() => Login::Withheld,
            Some(Some(_)) => Login::Saved,
            _ => Login::None,
        }
    }

    /// Sends it, and follows redirects.
    fn follow(&self, url: &Uri, request: &Request<'_>) -> Result<Answer, RegistryError> {
        let (mut url, mut own) = (url.clone(), true);
        for _ in 0..=MAX_REDIRECTS {
            // Another host must not use our credentials by redirecting back.
            own = own && same_origin(&url, &self.base);
            let authorization = request.authorization.filter(|_| own);
            let response = self.http.send(&url, &Request { authorization, ..*request })?;
            if !is_redirect(response.status()) {
                return Ok(Answer { url, response });
            }
            let next = header(&response, "location").and_then(|location| resolve(&url, location));
            let next = next.ok_or_else(|| self.wrong("a redirect to no address"))?;
            if !may_lead(&url, &next, self.insecure) {
                return Err(RegistryError::Plain { host: self.host().into(), url: without_query(&next) });
            }
            url = next;
        }
        Err(self.wrong(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Whoever can't be reached at all won't be in a second.
    fn judge_transport(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Transport { host, source, transient } => {
                let transient = transient && self.reached.load(Ordering::Relaxed);
                RegistryError::Transport { host, source, transient }
            }
            error => error,
        }
    }

    /// A new header in place of header `number`, unless another thread has had one in the meantime.
    fn renew(&self, number: u32, challenge: &challenge::Challenge) -> Result<(), RegistryError> {
        let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        if access.number != number {
            return Ok(());
        }
        if access.credentials.is_none() {
            access.credentials = Some(if self.withholds() {
                None
            } else {
                credentials::find(&self.reference, |name| std::env::var_os(name))?
            });
        }
        let asking = Asking {
            http: &self.http,
            reference: &self.reference,
            base: &self.base,
            insecure: self.insecure,
            credentials: access.credentials.as_ref().and_then(Option::as_ref),
            login: self.login(&access),
        };
        access.header = Some(asking.authorize(challenge)?);
        access.number = access.number.wrapping_add(1);
        Ok(())
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
