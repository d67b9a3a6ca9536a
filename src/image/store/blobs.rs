//! Blobs that are needed before a file system can be built from them: a registry's, which come in
//! parallel and must survive a broken connection. Each is downloaded once, however many processes
//! want it; [`Store::prune`] and the size limit remove what nobody leases.

use std::fs::File;
use std::io::{self, Read};

use super::{BLOBS, Store, StoreError};
use crate::image::blob::Checked;
use crate::image::digest::Digest;
use crate::image::room::Growing;
use crate::store::Lease;

impl Store {
    /// The blob, leased. If it isn't there, `fetch` opens a stream of it, which is verified against
    /// digest and length while it is written.
    pub fn blob<R: Read>(
        &self,
        digest: &Digest,
        len: Option<u64>,
        fetch: impl FnOnce() -> io::Result<R>,
    ) -> Result<Lease, StoreError> {
        let write = |file: &File| -> io::Result<()> {
            let mut checked = Checked::new(fetch()?, digest.to_string(), Some(digest.clone()), len);
            let mut file = Growing::new(file, u64::MAX).sequential();
            io::copy(&mut checked, &mut file)?;
            file.finish()?;
            Ok(checked.verify()?)
        };
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        let (lease, _) = self.files.once(BLOBS, &name, |file| {
            write(file).map_err(|source| StoreError::Blob { name: digest.to_string(), source })
        })?;
        Ok(lease)
    }
}
