//! Removing a blob that has served its purpose.

use super::{BLOBS, Store, StoreError};
use crate::store::{Lease, try_own};

impl Store {
    /// Ends the lease of a blob, and removes it unless somebody else leases it, who then removes
    /// it.
    pub(in crate::image) fn release_blob(&self, lease: Lease) -> Result<(), StoreError> {
        let path = lease.path().to_owned();
        drop(lease);
        let _lock = self.files.lock()?;
        if let Some(_unused) = try_own(&path)?
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            self.files.remove(BLOBS, name)?;
        }
        Ok(())
    }
}
