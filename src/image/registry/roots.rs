//! Root certificates: the system's, or those that SSL_CERT_FILE and SSL_CERT_DIR name, as OpenSSL
//! and Go read them. None are built in.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, parse_pem};

use super::error::RegistryError;
use crate::image::LOG;
use crate::image::digest::read_capped;

/// Where distributions keep them, in one file; the first that is there counts.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Longest file, in bytes; a whole bundle has some 200 KiB.
const MAX_LEN: u64 = 16 << 20;
/// Most files that are read of a directory.
const MAX_FILES: usize = 5000;

/// Reads the certificates. `variable` looks up the environment.
pub(super) fn load(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let (file, dirs) = (variable("SSL_CERT_FILE"), variable("SSL_CERT_DIR"));
    let mut places: Vec<PathBuf> = file.map(PathBuf::from).into_iter().collect();
    if let Some(dirs) = &dirs {
        places.extend(std::env::split_paths(dirs));
    }
    if places.is_empty() {
        places.extend(BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()));
    }
    let mut certificates = Vec::new();
    for place in &places {
        if place.is_dir() {
            let Ok(entries) = place.read_dir() else { continue };
            for entry in entries.flatten().take(MAX_FILES) {
                read(&entry.path(), &mut certificates);
            }
        } else {
            read(place, &mut certificates);
        }
    }
    if certificates.is_empty() {
        let looked: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        return Err(RegistryError::Roots { looked: looked.join(", ") });
    }
    Ok(certificates)
}

/// What can't be read, or is something else, gives none: directories of certificates hold other
/// things, too.
fn read(path: &Path, certificates: &mut Vec<Certificate<'static>>) {
    let bytes = File::open(path).and_then(|file| {
        // Not a pipe, which would be waited for.
        if file.metadata()?.is_file() { read_capped(file, MAX_LEN) } else { Ok(None) }
    });
    match bytes {
        Ok(Some(bytes)) => certificates.extend(parse_pem(&bytes).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })),
        Ok(None) => {
            LOG.info(format_args!("{} is no file of certificates", path.display()));
        }
        Err(error) => {
            LOG.info(format_args!("can't read {}: {error}", path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PEM makes of three bytes; nobody looks into it here.
    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMAEA\n-----END CERTIFICATE-----\n";

    fn count(variables: &[(&str, &Path)]) -> Result<usize, String> {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, path)| (*path).into());
        load(get).map(|certificates| certificates.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn files_and_directories_are_read_and_rubbish_in_them_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("certs")).unwrap();
        std::fs::write(path("one.pem"), format!("text\n{PEM}")).unwrap();
        std::fs::write(path("certs/two.pem"), PEM.repeat(2)).unwrap();
        std::fs::write(path("certs/rubbish"), b"\xff\0-----BEGIN").unwrap();
        assert_eq!(count(&[("SSL_CERT_FILE", &path("one.pem"))]), Ok(1));
        assert_eq!(count(&[("SSL_CERT_FILE", &path("one.pem")), ("SSL_CERT_DIR", &path("certs"))]), Ok(3));
        let error = count(&[("SSL_CERT_FILE", &path("none"))]).unwrap_err();
        assert!(error.contains("no root certificates in") && error.contains("set SSL_CERT_FILE"), "{error}");
    }
}
