//! From a source to images in the store: find the images, build the file systems that aren't there
//! yet, write down names.
//!
//! Nothing of an image is in the store before all of it has been read and verified. A tar that is
//! compressed or comes through a pipe is written to an unlinked file in the store's file system
//! first, uncompressed: its files may stand in any order. It is gone with this process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::archive::Archive;
use super::blob::BlobError;
use super::config::RunConfig;
use super::decode::{Compression, Decoded, MAGIC_LEN};
use super::digest::Digest;
use super::docker::{DOCKER_MANIFEST, docker_images};
use super::files::{ContentError, Directory, Files};
use super::found::Found;
use super::import::{LoadError, LoadOptions, Loaded, Loading, MAX_PIECE, Naming, over_limit};
use super::layout::{OCI_INDEX, oci_images};
use super::progress::{Counted, Progress};
use super::pull::{Policy, PullOptions, pull};
use super::reference::{Reference, local};
use super::room::Growing;
use super::rootfs;
use super::source::{ArchiveKind, Source, Which};
use super::store::{DigestOf, Image, RootfsKey, Store};

/// Loads all images of a source, or the one that it names; what is in the store under its name
/// isn't loaded again. Each is handed to `each` as soon as it is in the store, and may be used by
/// others from then on, whatever becomes of the next one; its file system is leased for as long as
/// `each` keeps what it gets.
pub fn load(
    store: &Store,
    source: &Source,
    options: &LoadOptions,
    progress: &dyn Progress,
    each: &mut dyn FnMut(Loaded),
) -> Result<(), LoadError> {
    let loading = Loading { store, options, progress };
    loading.check_platform()?;
    match source {
        Source::Layout { dir, which } => {
            let files = Directory::open(dir)?;
            let found = oci_images(&files, which, &options.platform)?;
            loading.add_all(&files, found, Some(dir), each)
        }
        Source::Archive { file: path, kind, which } => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|source| ContentError::Io { name: name.clone(), source })?;
            loading.archive(file, name, (*kind, which), Some(path), each)
        }
        Source::Stdin => {
            let name = "standard input".to_owned();
            let own = io::stdin().as_fd().try_clone_to_owned();
            let own = own.map_err(|source| ContentError::Io { name: name.clone(), source })?;
            loading.archive(own.into(), name, (ArchiveKind::Any, &Which::All), None, each)
        }
        Source::Dir(dir) => {
            each(loading.dir(dir)?);
            Ok(())
        }
        Source::Name(name) => {
            let (load, policy) = (options.clone(), Policy::Missing);
            each(pull(store, name, &PullOptions { policy, insecure: false, load }, progress)?);
            Ok(())
        }
    }
}

impl Loading<'_> {
    fn archive(
        &self,
        file: File,
        name: String,
        (kind, which): (ArchiveKind, &Which),
        path: Option<&Path>,
        each: &mut dyn FnMut(Loaded),
    ) -> Result<(), LoadError> {
        let files = Archive::open(self.plain_tar(file, &name)?, name)?;
        let is_docker = match kind {
            ArchiveKind::Oci => false,
            ArchiveKind::Docker => true,
            ArchiveKind::Any if files.has(DOCKER_MANIFEST) => true,
            ArchiveKind::Any if files.has(OCI_INDEX) => false,
            ArchiveKind::Any => return Err(ContentError::NotAnImage(files.name().into()).into()),
        };
        let images = if is_docker { docker_images } else { oci_images };
        let found = images(&files, which, &self.options.platform)?;
        self.add_all(&files, found, path, each)
    }

    /// A tar that can be read at any place: this one, or an uncompressed copy.
    fn plain_tar(&self, mut file: File, name: &str) -> Result<File, LoadError> {
        // An error of ours has the name in it.
        let io = |source: io::Error| match BlobError::of(source, name) {
            Ok(error) => LoadError::from(ContentError::Blob(error)),
            Err(source) => ContentError::Io { name: name.into(), source }.into(),
        };
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_file() && file.stream_position().map_err(io)? == 0 {
            let mut start = [0; MAGIC_LEN];
            let n = file.read_at(&mut start, 0).map_err(io)?;
            if Compression::of(&start[..n]) == Compression::None {
                return Ok(file);
            }
        }
        let len = metadata.is_file().then_some(metadata.len());
        self.progress.begin(&format!("reading {name}"), len);
        let limit = self.options.limits.max_bytes;
        let copy = self.store.unlinked()?;
        let growing = Growing::new(&copy, u64::MAX);
        let unwritten = |source| LoadError::Copy { name: name.into(), source };
        let mut decoded = Decoded::new(Counted { inner: file, progress: self.progress }).map_err(io)?;
        let (mut piece, mut copied) = (vec![0; MAX_PIECE], 0);
        loop {
            let n = match decoded.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io(error)),
            };
            growing.write_all_at(&piece[..n], copied).map_err(unwritten)?;
            copied += n as u64;
            if copied > limit {
                return Err(LoadError::TooLong { name: name.into(), limit });
            }
        }
        copy.set_len(copied).map_err(unwritten)?;
        self.progress.end();
        Ok(copy)
    }

    fn add_all(
        &self,
        files: &dyn Files,
        found: Vec<Found>,
        path: Option<&Path>,
        each: &mut dyn FnMut(Loaded),
    ) -> Result<(), LoadError> {
        if let Naming::Only(wanted) = &self.options.naming
            && found.len() > 1
        {
            let (name, count, wanted) = (files.name().into(), found.len(), wanted.to_string());
            return Err(LoadError::OneName { name, count, wanted });
        }
        let names = names(&found, &self.options.naming, path);
        for (found, names) in found.into_iter().zip(names) {
            // What this gives is a lease: of a thousand images only one may be kept.
            each(self.add(files, found, names)?);
        }
        Ok(())
    }

    fn add(&self, files: &dyn Files, found: Found, names: Vec<Reference>) -> Result<Loaded, LoadError> {
        self.put(found, names, None, |layers, out| self.build(files, layers, out))
    }

    fn dir(&self, dir: &Path) -> Result<Loaded, LoadError> {
        let limits = &self.limits();
        let fingerprint = rootfs::fingerprint(dir, limits)?;
        let key = RootfsKey::of_dir(&fingerprint);
        let built = self.store.rootfs(&key, |out| -> Result<(), LoadError> {
            self.progress.begin(&format!("building {}", dir.display()), None);
            rootfs::build_from_dir(dir, out, limits)?;
            if rootfs::fingerprint(dir, limits)? != fingerprint {
                return Err(LoadError::Changed(dir.display().to_string()));
            }
            self.progress.end();
            Ok(())
        });
        let (lease, built) = built.map_err(|error| over_limit(error, || dir.display().to_string()))?;
        // `dir:.` has a name, too.
        let named = dir.canonicalize().unwrap_or_else(|_| dir.into());
        let names = match &self.options.naming {
            Naming::Source => vec![local(&named, None)],
            Naming::Only(name) => vec![name.clone()],
            Naming::None => Vec::new(),
        };
        let image = Image {
            digest: Digest::of(format!("bothy dir {fingerprint}").as_bytes()),
            digest_of: DigestOf::Directory,
            platform: self.options.platform.clone(),
            created: None,
            config: RunConfig::default(),
            diff_ids: Vec::new(),
            rootfs: key.as_str().into(),
            indexes: Vec::new(),
        };
        let moved = self.store.add(&image, &names)?;
        Ok(Loaded { image, names, moved, built, lease })
    }
}

/// What each image will be called: as somebody wants it, as the source says, or else after the file
/// that it is from. Those that would all get the file's name, because they have none, are told
/// apart by their digests.
fn names(found: &[Found], naming: &Naming, path: Option<&Path>) -> Vec<Vec<Reference>> {
    let mut heirs: BTreeMap<Reference, BTreeSet<&Digest>> = BTreeMap::new();
    if let Some(path) = path {
        for found in found.iter().filter(|found| found.names.is_empty()) {
            heirs.entry(local(path, found.tag.as_deref())).or_default().insert(&found.digest);
        }
    }
    let name = |found: &Found| match (naming, path) {
        (Naming::None, _) => Vec::new(),
        (Naming::Only(wanted), _) => vec![wanted.clone()],
        (Naming::Source, Some(path)) if found.names.is_empty() => {
            let name = local(path, found.tag.as_deref());
            let is_contested = found.tag.is_none() && heirs.get(&name).is_some_and(|heirs| heirs.len() > 1);
            vec![if is_contested { local(path, Some(found.digest.short())) } else { name }]
        }
        (Naming::Source, _) => found.names.clone(),
    };
    found.iter().map(name).collect()
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
